"""Widths from shapes: solve the axis expressions of some tensors for the widths of their groups."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fedma_flwr.structure.axes import AxisExpression, SpecError


def solve_widths(
    axes: Mapping[str, tuple[AxisExpression, ...]],
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
