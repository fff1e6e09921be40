"""Widths from shapes: solve the axis expressions of some tensors for the widths of their groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from fedma_flwr.structure.axes import AxisExpression, SpecError


def solve_widths(
    axes: Mapping[str, tuple[AxisExpression, ...]],
    sizes: Mapping[str, int],
    tensors: Mapping[str, Tensor],
    known: Mapping[str, int] | None = None,
    fixed: Mapping[str, int] | None = None,
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
    fixed : mapping of str to int, optional
        Groups that cannot grow: where shapes do not tell two groups' widths, this is theirs.

    Raises
    ------
    SpecError
        If a shape contradicts its axes; the message names the tensor and both shapes.
    """
    widths = dict(known or {})
    pending = [name for name in tensors if name in axes]
    _solve_all(axes, tensors, pending, widths)
    if fixed and any(
        group not in widths for name in pending for axis in axes[name] for group in axis.groups
    ):
        widths = {**fixed, **widths}
        _solve_all(axes, tensors, pending, widths)
    full = {**sizes, **widths}
    for name in pending:
        _check_shape(name, axes[name], tensors[name], full)
    return {group: widths[group] for group in sizes if group in widths}


def widths_of_units(
    axes: Mapping[str, tuple[AxisExpression, ...]],
    sizes: Mapping[str, int],
    tensors: Mapping[str, Tensor],
    units: Mapping[str, int],
    fixed: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Widths of tensors that are said to have so many units of some groups.

    Parameters
    ----------
    axes, sizes, tensors, fixed
        As for `solve_widths`.
    units : mapping of str to int
        By group. Groups that no tensor has may have any number.

    Raises
    ------
    SpecError
        If a group has another width; the message names it.
    """
    try:
        told = solve_widths(axes, sizes, tensors, fixed=fixed)
    except SpecError:  # two groups share an axis, and only the units tell which has what
        told = solve_widths(axes, sizes, tensors, units, fixed)
    for group, number in units.items():
        if told.get(group, number) != number:
            raise SpecError(
                f"assignments[{group!r}] has {number} units; the tensors have {told[group]}."
            )
    return told


def _solve_all(
    axes: Mapping[str, tuple[AxisExpression, ...]],
    tensors: Mapping[str, Tensor],
    names: Sequence[str],
    widths: dict[str, int],
) -> None:
    """Add all widths that follow from one another."""
    # sum(), since any() would begin anew at every width found: quadratic in the tensors.
    while sum(_solve(axes[name], tensors[name], widths) for name in names):
        pass


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
