"""Wrappers around a model, or around a module in it: what they do to names and paths.

``torch.compile``, ``DataParallel``, ``DistributedDataParallel`` and Opacus hold the wrapped module
as their only child, whose name then stands in the state dict: ``_orig_mod.fc.weight``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from torch import nn

WRAPPERS = frozenset(
    {"module", "_orig_mod", "_module", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}
)
Value = TypeVar("Value")


def without_wrappers(name: str) -> str:
    """A tensor's name, or a module's path, without the wrappers in it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def under_names(values: Mapping[str, Value], names: Iterable[str]) -> dict[str, Value]:
    """Values under the names that the same model has with other wrappers, or without any.

    Parameters
    ----------
    values : mapping of str to value
        By tensor; what is none of the names, wrapped or not, keeps its own.
    names : iterable of str
        Those wanted. A name that is wanted as it is stays so.
    """
    wanted = dict.fromkeys(names)
    if values.keys() <= wanted.keys():
        return dict(values)
    plain: dict[str, list[str]] = {}
    for name in wanted:
        plain.setdefault(without_wrappers(name), []).append(name)
    result = {}
    for name, value in values.items():
        others = [n for n in plain.get(without_wrappers(name), []) if n not in values]
        result[others[0] if name not in wanted and len(others) == 1 else name] = value
    return result if len(result) == len(values) else dict(values)


def submodule_at(model: nn.Module, path: str) -> nn.Module:
    """The module at a path, through wrappers that the path does not have, or has in vain.

    Raises
    ------
    AttributeError
        If there is none.
    """
    for part in path.split(".") if path else ():
        while part not in model._modules and (inner := _wrapped(model)) is not None:
            model = inner
        child = model._modules.get(part)
        if child is not None:
            model = child
        elif part not in WRAPPERS:
            raise AttributeError(f"{type(model).__name__} has no module {part!r}")
    while (inner := _wrapped(model)) is not None:
        model = inner
    return model


def _wrapped(model: nn.Module) -> nn.Module | None:
    """What a wrapper holds; None if this is none."""
    names = list(model._modules)
    return model._modules[names[0]] if len(names) == 1 and names[0] in WRAPPERS else None
