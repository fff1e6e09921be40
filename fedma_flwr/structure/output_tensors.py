"""The tensors in whatever a model returns: nested containers, dataclasses, objects of any class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

# Objects inside objects inside ... further down than any output keeps its tensors.
_DEEPEST = 12


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in a value, in a fixed order; each one once.

    Parameters
    ----------
    value : Any
        What a model returned. Attributes of objects count, those of modules do not.
    """
    return list(_walk(value, set(), 0))


def _walk(value: Any, seen: set[int], depth: int) -> Iterator[Tensor]:
    if id(value) in seen or depth > _DEEPEST:
        return
    if isinstance(value, Tensor):
        seen.add(id(value))
        yield value
        return
    for part in _parts(value):
        if part is not value:
            seen.add(id(value))
            yield from _walk(part, seen, depth + 1)


def _parts(value: Any) -> list[Any]:
    """What a container or an object holds; nothing of a module, a class, a function or a number."""
    if isinstance(value, (type, nn.Module, str, bytes)) or callable(value):
        return []
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(value)
    leaves = tree_leaves(value)
    if len(leaves) != 1 or leaves[0] is not value:
        return leaves
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    own = [getattr(value, name) for name in slots if isinstance(name, str) and hasattr(value, name)]
    return [*getattr(value, "__dict__", {}).values(), *own]
