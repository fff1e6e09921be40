"""Whether the parts of a `PermutationSpec` fit together."""

from __future__ import annotations

from fedma_flwr.structure.axes import SpecError
from fedma_flwr.structure.spec_parts import SpecParts


def check_parts(spec: SpecParts) -> None:
    """Refuse a spec whose parts do not fit together.

    Raises
    ------
    SpecError
        Names the group or tensor.
    """
    _check_groups(spec)
    lists = {"outputs": spec.outputs, "statistics": spec.statistics, "head": spec.head}
    lists["directions"] = spec.directions
    for label, names in lists.items():
        if missing := [name for name in names if name not in spec.axes]:
            raise SpecError(f"`{label}` names tensors that `axes` does not list: {missing}.")
    for label, places in {"outputs": spec.outputs, "directions": spec.directions}.items():
        for name, axis in places.items():
            if not 0 <= axis < len(spec.axes[name]):
                raise SpecError(f"{label}[{name!r}] is {axis}, but the tensor has no such axis.")
    _check_variances(spec)


def _check_groups(spec: SpecParts) -> None:
    for name, group in spec.groups.items():
        if group.size < 1:
            raise SpecError(f"Group {name!r} has size {group.size}; it must be at least 1.")
    used = {group for axes in spec.axes.values() for axis in axes for group in axis.groups}
    if unknown := sorted(used - set(spec.groups)):
        raise SpecError(f"axes name groups that `groups` does not list: {unknown}.")
    if unused := [name for name in spec.groups if name not in used]:
        raise SpecError(f"`groups` lists groups that no axis uses: {unused}.")


def _check_variances(spec: SpecParts) -> None:
    for variance, mean in spec.variances.items():
        if missing := [name for name in (variance, mean) if name not in spec.statistics]:
            raise SpecError(f"`variances` names tensors that are no `statistics`: {missing}.")
        if spec.axes[variance] != spec.axes[mean]:
            raise SpecError(
                f"variances[{variance!r}] is {mean!r}, but the tensors have different axes: "
                f"{spec.describe(variance)} and {spec.describe(mean)}."
            )
