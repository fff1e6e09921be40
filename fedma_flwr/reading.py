"""Values of a record from whoever: of the right type and in range, or refused in a few words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

LONGEST_TEXT = 500  # characters of what a log or an error shows of somebody else's words
LARGEST_WIDTH = 2**32  # units cross in four bytes at most


def plain(words: str, longest: int = LONGEST_TEXT) -> str:
    """Somebody else's words on one line: cut, and with control characters written out."""
    shown = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in words[:longest]
    )
    return shown if len(shown) <= longest and len(words) <= longest else f"{shown[:longest]}..."


def text(values: Mapping[str, Any], key: str, default: str = "") -> str:
    """A text; ValueError if it is something else."""
    value = values.get(key, default)
    if not isinstance(value, str):
        raise _refusal(key, value, "a text")
    return value


def whole(values: Mapping[str, Any], key: str, largest: int = 2**63 - 1) -> int:
    """A whole number from 0, 0 if it is missing; ValueError if it is something else."""
    value = values.get(key, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= largest:
        raise _refusal(key, value, f"a whole number from 0 to {largest}")
    return value


def ratio(values: Mapping[str, Any], key: str) -> float:
    """A number above 0 and up to 1, 1 if it is missing; ValueError if it is something else."""
    value = values.get(key, 1.0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise _refusal(key, value, "a number above 0, at most 1")
    return float(value)


def flag(values: Mapping[str, Any], key: str) -> bool:
    """A truth value, False if it is missing; ValueError if it is something else."""
    value = values.get(key, False)
    if not isinstance(value, bool):
        raise _refusal(key, value, "true or false")
    return value


def names(values: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Texts, none if they are missing; ValueError if it is something else."""
    value = values.get(key, ())
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise _refusal(key, value, "a list of texts")
    return tuple(value)


def units(values: Mapping[str, Any], key: str, width: int) -> Tensor:
    """(n,) int64 numbers of global units, in the bytes that `width` needs; ValueError if not."""
    data = values.get(key)
    kind = np.dtype("<u2" if width <= 2**16 else "<u4")
    if not isinstance(data, bytes) or len(data) % kind.itemsize:
        raise _refusal(key, data, "unit numbers")
    return torch.from_numpy(np.frombuffer(data, dtype=kind).astype(np.int64))


def _refusal(key: str, value: object, wanted: str) -> ValueError:
    """Without the value itself, which may be of any size."""
    said = value if isinstance(value, int | float) and abs(value) < 2**70 else type(value).__name__
    return ValueError(f"{plain(key, 100)!r} must be {wanted}, not {said}")
