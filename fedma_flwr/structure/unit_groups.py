"""What a `PermutationSpec` is made of: unit groups, axes as text or objects, and their checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedma_flwr.structure.axes import AxisExpression, SpecError


@dataclass(frozen=True)
class UnitGroup:
    """Units that must be permuted together.

    Parameters
    ----------
    size : int
        Number of units in the initial model.
    growable : bool (default: True)
        Whether zero-padded units may be added; if not, the group is matched at fixed width.
    reason : str (default: "")
        Why the group cannot grow.
    """

    size: int
    growable: bool = True
    reason: str = ""


def as_group(group: UnitGroup | int) -> UnitGroup:
    """A group from its size, or as it is."""
    return group if isinstance(group, UnitGroup) else UnitGroup(int(group))


def as_axes(axes: str | Sequence[AxisExpression]) -> tuple[AxisExpression, ...]:
    """The axes of a tensor from text such as ``"conv2, conv1, 5, 5"``, or as they are."""
    if isinstance(axes, str):
        return tuple(AxisExpression.parse(part.strip()) for part in axes.split(",") if part.strip())
    return tuple(axes)


def check_parts(
    groups: Mapping[str, UnitGroup],
    axes: Mapping[str, tuple[AxisExpression, ...]],
    outputs: Mapping[str, int],
    statistics: Sequence[str],
    head: Sequence[str],
) -> None:
    """Refuse parts that do not fit together; they are those of `PermutationSpec`.

    Raises
    ------
    SpecError
        Names the group or tensor.
    """
    for name, group in groups.items():
        if group.size < 1:
            raise SpecError(f"Group {name!r} has size {group.size}; it must be at least 1.")
    used = {group for own in axes.values() for axis in own for group in axis.groups}
    if unknown := sorted(used - set(groups)):
        raise SpecError(f"axes name groups that `groups` does not list: {unknown}.")
    if unused := [name for name in groups if name not in used]:
        raise SpecError(f"`groups` lists groups that no axis uses: {unused}.")
    lists = {"outputs": outputs, "statistics": statistics, "head": head}
    for label, names in lists.items():
        if missing := [name for name in names if name not in axes]:
            raise SpecError(f"`{label}` names tensors that `axes` does not list: {missing}.")
    for name, axis in outputs.items():
        if not 0 <= axis < len(axes[name]):
            raise SpecError(f"outputs[{name!r}] is {axis}, but the tensor has no such axis.")
