"""The spec of a part of a model: what is shared, where other tensors stay with the client."""

from __future__ import annotations

from collections.abc import Collection

from fedma_flwr.structure.proving.spec_changes import without_groups
from fedma_flwr.structure.signatures import signature_tensors
from fedma_flwr.structure.spec import PermutationSpec

_ABSENT = "it has units of a tensor that the initial arrays lack"
_UNMADE = "no shared tensor makes its units"


def with_tensors(spec: PermutationSpec, names: Collection[str]) -> PermutationSpec:
    """The spec of some tensors of a model; the others follow their units elsewhere.

    Parameters
    ----------
    spec : PermutationSpec
        The model's.
    names : collection of str
        The tensors to keep.

    Returns
    -------
    PermutationSpec
        Groups whose units none of these tensors makes have turned into fixed sizes: nothing tells
        how to match them. It has no head if none of the head's tensors is kept.
    """
    axes = {name: own for name, own in spec.axes.items() if name in names}
    on_axes = frozenset().union(*(axis.groups for own in axes.values() for axis in own))
    statistics = [name for name in spec.statistics if name in axes]
    kept = PermutationSpec(
        groups={name: group for name, group in spec.groups.items() if name in on_axes},
        axes=axes,
        outputs={name: axis for name, axis in spec.outputs.items() if name in axes},
        statistics=statistics,
        head=[name for name in spec.head if name in axes] or None,
        pinned={axis: why for axis, why in spec.pinned.items() if axis.rpartition("[")[0] in axes},
        variances={
            name: mean for name, mean in spec.variances.items() if {name, mean} <= {*statistics}
        },
        directions={name: axis for name, axis in spec.directions.items() if name in axes},
    )
    return without_groups(kept, _unmade(kept), _UNMADE)


def without_tensors(spec: PermutationSpec, names: Collection[str]) -> PermutationSpec:
    """The spec of a model of which some tensors are nowhere to be seen.

    Parameters
    ----------
    spec : PermutationSpec
        The model's.
    names : collection of str
        The tensors that are missing. Nobody can permute them, so that their groups are fixed.
    """
    touched = {group for name in names for group in spec.tensor_groups(name)}
    fixed = without_groups(spec, [group for group in spec.groups if group in touched], _ABSENT)
    return with_tensors(fixed, spec.axes.keys() - set(names))


def _unmade(spec: PermutationSpec) -> list[str]:
    """Groups that cannot be matched, since no tensor describes their units."""
    matched: frozenset[str] = frozenset()
    unmade = []
    for group in spec.groups:
        if signature_tensors(spec, group, matched):
            matched |= {group}
        else:
            unmade.append(group)
    return unmade
