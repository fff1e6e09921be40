"""Take units out of tensors, and put them elsewhere, wherever an axis carries their group."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedma_flwr.structure.axes import AxisExpression, SpecError

# Blocks that are copied one by one, rather than place by place.
_MOST_BLOCKS = 16


def check_units(
    argument: str, units: Mapping[str, Tensor], widths: Mapping[str, int]
) -> dict[str, Tensor]:
    """Refuse unit numbers that do not fit their group.

    Parameters
    ----------
    argument : str
        What the caller calls `units`, for the message.
    units : mapping of str to Tensor
        For each group (n,) unit numbers.
    widths : mapping of str to int
        The width of every group of the spec.

    Returns
    -------
    dict of str to Tensor
        The unit numbers as int64 on the CPU.

    Raises
    ------
    SpecError
        If a group is unknown, or its numbers are not distinct or not below its width.
    """
    checked = {}
    for group, index in units.items():
        if group not in widths:
            raise SpecError(f"{argument} names a group that the spec lacks: {group!r}.")
        numbers = torch.as_tensor(index).cpu().to(torch.int64)
        inside = bool(((numbers >= 0) & (numbers < widths[group])).all())
        if numbers.dim() != 1 or not inside or len(numbers.unique()) != len(numbers):
            raise SpecError(
                f"{argument}[{group!r}] must hold distinct unit numbers below {widths[group]}."
            )
        checked[group] = numbers
    return checked


def take_units(
    tensor: Tensor,
    axes: tuple[AxisExpression, ...],
    units: Mapping[str, Tensor],
    widths: Mapping[str, int],
) -> Tensor:
    """The given units of each group, in the given order, along every axis of one tensor.

    Parameters
    ----------
    tensor : Tensor
        A tensor of the given widths.
    axes : tuple of AxisExpression
        What its axes mean.
    units : mapping of str to Tensor
        For each group (n,) unit numbers; groups left out keep all units.
    widths : mapping of str to int
        The width of every group on the tensor.

    Returns
    -------
    Tensor
        A new one, or the same if it has none of the groups.
    """
    for dim, axis in enumerate(axes):
        if axis.groups & units.keys():
            tensor = tensor.index_select(dim, axis.positions(units, widths).to(tensor.device))
    return tensor


def place_units(
    tensor: Tensor,
    axes: tuple[AxisExpression, ...],
    units: Mapping[str, Tensor],
    widths: Mapping[str, int],
    paddings: Sequence[float],
) -> Tensor:
    """The units of one tensor at the given places of a wider one.

    Parameters
    ----------
    tensor : Tensor
        A tensor with as many units as there are places for them.
    axes : tuple of AxisExpression
        What its axes mean.
    units : mapping of str to Tensor
        For each group (n,) the number that each unit gets; groups left out stay as they are.
    widths : mapping of str to int
        The width of every group on the tensor afterwards.
    paddings : sequence of float
        For each axis what stands where no unit is put.

    Returns
    -------
    Tensor
        A new one, or the same if it has none of the groups.
    """
    places = {
        dim: axis.positions(units, widths)
        for dim, axis in enumerate(axes)
        if axis.groups & units.keys()
    }
    if len({paddings[dim] for dim in places}) == 1:
        shape = [axes[d].size(widths) if d in places else n for d, n in enumerate(tensor.shape)]
        wide = tensor.new_full(shape, paddings[next(iter(places))])
        if _placed_in_runs(wide, tensor, places):
            return wide
    for dim, own in places.items():
        shape = [*tensor.shape]
        shape[dim] = axes[dim].size(widths)
        wide = tensor.new_full(shape, paddings[dim])
        tensor = wide.index_copy_(dim, own.to(tensor.device), tensor)
    return tensor


def _placed_in_runs(wide: Tensor, tensor: Tensor, places: Mapping[int, Tensor]) -> bool:
    """Copy a tensor block by block, which is fast, if its places are few even runs."""
    runs = {dim: _runs(own) for dim, own in places.items()}
    if math.prod(map(len, runs.values())) > _MOST_BLOCKS:
        return False
    for block in itertools.product(*runs.values()):
        source, target = tensor, wide
        for dim, (start, put) in zip(runs, block, strict=True):
            source = source.narrow(dim, start, len(put))
            target = target[(*[slice(None)] * dim, slice(put.start, put.stop, put.step))]
        target.copy_(source)
    return True


def _runs(places: Tensor) -> list[tuple[int, range]]:
    """Where runs of evenly spaced places start, and where they are put."""
    gaps = places.diff()
    step = max(int(gaps.mode().values), 1) if len(gaps) else 1
    starts = [0, *((gaps != step).nonzero()[:, 0] + 1).tolist()]
    ends = [*starts[1:], len(places)]
    if len(starts) > _MOST_BLOCKS:
        return [(0, range(1))] * len(starts)  # too many to be looked at
    return [
        (start, range(int(places[start]), int(places[end - 1]) + 1, step))
        for start, end in zip(starts, ends, strict=True)
        if end > start
    ]
