"""Widths from shapes: solve the axis expressions of some tensors for the widths of their groups."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedma_flwr.structure.axes import AxisExpression, SpecError

Axes = Mapping[str, tuple[AxisExpression, ...]]


def solve_widths(
    axes: Axes,
    sizes: Mapping[str, int],
    tensors: Mapping[str, Tensor],
    known: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Width of every group that the shapes of the given tensors determine.

    Parameters
    ----------
    axes : mapping of str to tuple of AxisExpression
        What the axes of each tensor mean.
    sizes : mapping of str to int
        Widths that are assumed for groups that no shape determines.
    tensors : mapping of str to Tensor
        Some or all tensors of a model; those without an entry in `axes` are ignored.
    known : mapping of str to int, optional
        Widths that are known already; the tensors must agree with them.

    Raises
    ------
    SpecError
        If a shape contradicts its axes; the message names the tensor and both shapes.
    """
    widths = dict(known or {})
    pending = [name for name in tensors if name in axes]
    # sum(), since any() would begin anew at every width found: quadratic in the tensors.
    while sum(_solve(axes[name], tensors[name], widths) for name in pending):
        pass
    full = {**sizes, **widths}
    for name in pending:
        _check_shape(name, axes[name], tensors[name], full)
    return {group: widths[group] for group in sizes if group in widths}


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


def _solve(axes: tuple[AxisExpression, ...], tensor: Tensor, widths: dict[str, int]) -> bool:
    """Add the widths that follow from one tensor; whether there was any."""
    found = False
    for axis, length in zip(axes, tensor.shape, strict=False):
        unknown = axis.groups - widths.keys()
        if len(unknown) == 1:
            (group,) = unknown
            constant = axis.size({**widths, group: 0})
            slope = axis.size({**widths, group: 1}) - constant
            width = (length - constant) // slope if slope else 0
            if width >= 1:
                widths[group], found = width, True
    return found


def _check_shape(
    name: str, axes: tuple[AxisExpression, ...], tensor: Tensor, widths: Mapping[str, int]
) -> None:
    expected = tuple(axis.size(widths) for axis in axes)
    if tuple(tensor.shape) != expected:
        described = ", ".join(str(axis) for axis in axes) or "no axes"
        raise SpecError(
            f"Tensor {name!r} has shape {tuple(tensor.shape)}; the spec ({described}) needs "
            f"{expected}."
        )
