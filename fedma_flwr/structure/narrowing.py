"""How wide a model is at a ratio: the widths of narrow clients."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedma_flwr.structure.spec import PermutationSpec

#: So that a tenth of thirty units is three of them.
_ROUNDING = 1e-9


def narrow_widths(spec: PermutationSpec, ratio: float) -> dict[str, int]:
    """The width of every group of a model at a ratio of the initial widths.

    Parameters
    ----------
    spec : PermutationSpec
        The model's spec. Groups that cannot grow keep their width.
    ratio : float
        Above 0, at most 1. A group has one unit at least.

    Raises
    ------
    ValueError
        If the ratio is out of range.
    """
    if not 0.0 < ratio <= 1.0:
        raise ValueError(f"width was {ratio!r}; it must be above 0, at most 1.")
    return {
        name: max(int(group.size * ratio + _ROUNDING), 1) if group.growable else group.size
        for name, group in spec.groups.items()
    }


def first_units(spec: PermutationSpec, ratio: float) -> dict[str, Tensor]:
    """The first units of every group, as many as a model of a ratio has (HeteroFL's choice).

    Parameters
    ----------
    spec, ratio
        As for `narrow_widths`.
    """
    return {name: torch.arange(width) for name, width in narrow_widths(spec, ratio).items()}


def keeps_its_width(spec: PermutationSpec) -> dict[str, str]:
    """Groups that are as wide in a narrow model as in the whole one, and why."""
    return {
        name: group.reason or "it cannot grow"
        for name, group in spec.groups.items()
        if not group.growable
    }


def same_units(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two selections are the same units in the same order."""
    return one.keys() == other.keys() and all(torch.equal(one[g], other[g]) for g in one)
