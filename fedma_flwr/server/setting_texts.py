"""Settings as text that is the same in another process: what a checkpoint's fingerprint holds."""

from __future__ import annotations

import json
import re

from fedma_flwr.matching import Matcher
from fedma_flwr.structure import PermutationSpec

_ADDRESS = re.compile(r" at 0x[0-9A-Fa-f]+")


def spec_text(spec: PermutationSpec) -> str:
    """A spec as text, as checkpoints have it: which variance is whose follows from the model."""
    parts = json.loads(spec.to_json())
    parts.pop("variances", None)
    return json.dumps(parts, separators=(",", ":"))


def without_reasons(text: str) -> str:
    """A spec's text without why units are pinned or cannot grow, which other versions word anew."""
    try:
        parts = json.loads(text)
        groups = {n: g if isinstance(g, int) else g[:1] for n, g in parts["groups"].items()}
    except (ValueError, TypeError, KeyError, AttributeError):  # somebody has edited it
        return text
    return json.dumps({**parts, "groups": groups, "pinned": None}, sort_keys=True)


def matcher_text(matcher: Matcher) -> str:
    """A matcher as text that is the same in another process: no address of an object."""
    kind = type(matcher)
    if kind.__repr__ is object.__repr__:
        text = f"{kind.__qualname__}({getattr(matcher, '__dict__', '')})"
    else:
        text = str(matcher)
    return _ADDRESS.sub("", text)  # of what the matcher has
