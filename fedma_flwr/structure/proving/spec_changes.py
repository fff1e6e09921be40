"""What a proof changes about a spec: groups that are dropped, and groups that cannot grow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from fedma_flwr.structure.axes import AxisExpression
from fedma_flwr.structure.spec import PermutationSpec
from fedma_flwr.structure.unit_groups import UnitGroup


def without_groups(spec: PermutationSpec, groups: Iterable[str], reason: str) -> PermutationSpec:
    """The spec with some groups turned into fixed sizes.

    Parameters
    ----------
    spec : PermutationSpec
        The spec.
    groups : iterable of str
        The groups to drop.
    reason : str
        Why, for `PermutationSpec.pinned`.
    """
    dropped = {name: spec.sizes[name] for name in groups}
    if not dropped:
        return spec
    pinned = {
        f"{name}[{dim}]": reason
        for name, axes in spec.axes.items()
        for dim, axis in enumerate(axes)
        if axis.groups & dropped.keys()
    }
    axes = {name: tuple(_fixed(axis, dropped) for axis in own) for name, own in spec.axes.items()}
    statistics = [n for n in spec.statistics if any(axis.groups for axis in axes[n])]
    return PermutationSpec(
        groups={name: group for name, group in spec.groups.items() if name not in dropped},
        axes=axes,
        outputs=spec.outputs,
        statistics=statistics,
        head=spec.head or None,
        pinned={**spec.pinned, **pinned},
        variances={n: mean for n, mean in spec.variances.items() if n in statistics},
        directions=spec.directions,
    )


def _fixed(axis: AxisExpression, sizes: Mapping[str, int]) -> AxisExpression:
    """The axis with the sizes of some groups in place of the groups."""
    return AxisExpression(
        tuple(
            tuple(
                sizes.get(factor, factor) if isinstance(factor, str) else factor for factor in term
            )
            for term in axis.terms
        )
    )


def with_growth(spec: PermutationSpec, reasons: Mapping[str, str]) -> PermutationSpec:
    """The spec with some groups that must keep their width.

    Parameters
    ----------
    spec : PermutationSpec
        The spec.
    reasons : mapping of str to str
        For every group that cannot grow, why. What the spec says itself stays.
    """
    groups: dict[str, UnitGroup] = {}
    for name, group in spec.groups.items():
        if group.growable and name in reasons:
            group = replace(group, growable=False, reason=reasons[name])
        groups[name] = group
    return replace(spec, groups=groups)
