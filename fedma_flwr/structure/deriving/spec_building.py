"""From propagated axes to a spec: groups in forward order, named after what makes their units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedma_flwr.structure.axes import AxisExpression
from fedma_flwr.structure.deriving.atoms import Axis, expand, leaves, pin, size
from fedma_flwr.structure.deriving.group_names import (
    group_atoms,
    is_group,
    name_groups,
    named_axis,
)
from fedma_flwr.structure.deriving.trace import OF_AN_INPUT, Trace
from fedma_flwr.structure.spec import PermutationSpec
from fedma_flwr.structure.state_dict_names import named_variances
from fedma_flwr.structure.unit_groups import UnitGroup


def build_spec(trace: Trace) -> PermutationSpec:
    """The spec that a trace amounts to; all groups are taken to be growable."""
    for name, axes in trace.state.items():
        for axis in axes:
            if name not in trace.used:
                pin(axis)
            _pin_squares(axis)
    outputs = _output_axes(trace)
    _pin_unmade(trace, outputs)
    groups = name_groups(trace, outputs)
    named = {own: tuple(named_axis(a, groups) for a in axes) for own, axes in trace.state.items()}
    axes_of = {name: named[own] for name, own in trace.names.items()}
    statistics = [
        n for n, own in axes_of.items() if n in trace.buffers and any(a.groups for a in own)
    ]
    head = _head(trace, named, outputs)
    return PermutationSpec(
        groups={name: UnitGroup(atom.size) for atom, name in groups.items()},
        axes=axes_of,
        outputs={name: outputs[own] for name, own in trace.names.items() if outputs[own]},
        statistics=statistics,
        head=[name for name, own in trace.names.items() if own in head],
        pinned=_reasons(trace),
        variances=_variances(trace, axes_of, statistics),
        directions=_directions(trace),
    )


def _head(
    trace: Trace, named: Mapping[str, tuple[AxisExpression, ...]], outputs: Mapping[str, int]
) -> list[str]:
    """The tensors whose output axis has no groups and is one of the model's outputs."""
    at_outputs = {atom for axis in trace.outputs for atom in leaves(axis)}
    return [
        name
        for name, axes in trace.state.items()
        if axes
        and name not in trace.by_twin  # a saved original makes no output
        and not named[name][outputs[name]].groups
        and at_outputs.intersection(leaves(axes[outputs[name]]))
    ]


def _directions(trace: Trace) -> dict[str, int]:
    """The tensors of the state dict that are divided by their norms."""
    dims = {id(axes): dim for axes, dim in trace.directions}
    return {
        name: dims[id(trace.state[own])]
        for name, own in trace.names.items()
        if id(trace.state[own]) in dims
    }


def _variances(
    trace: Trace, axes: Mapping[str, tuple[AxisExpression, ...]], statistics: Sequence[str]
) -> dict[str, str]:
    """Running variances and their means as operators read them; where none does, by their names."""
    names = {id(own): name for name, own in trace.state.items()}
    read = {names.get(id(variance)): names.get(id(mean)) for variance, mean in trace.variances}
    found = named_variances(axes, statistics)
    for name in statistics:
        mean, named = read.get(trace.names[name]), found.get(name)
        if mean is None or mean not in statistics:
            continue
        if named is None or trace.names[named] != mean:  # a tied buffer has several names
            found[name] = mean
    return found


def _pin_squares(axis: Axis) -> None:
    """Pin groups that occur twice in one product: widths could not be told from sizes."""
    for term in expand(axis):
        for atom in term:
            if term.count(atom) > 1:
                pin(((atom,),), "it is multiplied with itself")


def _pin_unmade(trace: Trace, outputs: Mapping[str, int]) -> None:
    """Pin groups whose units no parameter makes: they could not be told apart when matched."""
    made = {
        atom
        for name, axes in trace.state.items()
        if axes and name not in trace.buffers
        for atom in leaves(axes[outputs[name]])
    }
    for axes in trace.state.values():
        for axis in axes:
            for atom in leaves(axis):
                if atom not in made:
                    pin(((atom,),), "no parameter makes its units" if is_group(atom) else "")


def _output_axes(trace: Trace) -> dict[str, int]:
    """The axis along which each tensor makes units: the first with groups that is not contracted.

    A weight of several networks side by side (experts, heads) has more than one such axis: then
    that of units which no other tensor makes.
    """
    candidates = {name: _uncontracted(trace, name) for name in trace.state}
    made = {
        atom
        for name, dims in candidates.items()
        if len(dims) == 1
        for atom in group_atoms(trace.state[name][dims[0]])
    }

    def makes_new(name: str, dim: int) -> bool:
        return not made.issuperset(group_atoms(trace.state[name][dim]))

    return {
        name: next((dim for dim in dims if makes_new(name, dim)), dims[0] if dims else 0)
        for name, dims in candidates.items()
    }


def _uncontracted(trace: Trace, name: str) -> list[int]:
    """The axes along which a tensor may make units: some, unless it has no axes."""
    axes = trace.state[name]
    order = {id(axis): position for position, axis in enumerate(trace.contracted)}
    made = [dim for dim, axis in enumerate(axes) if id(axis) not in order]
    with_groups = [dim for dim in made if any(group_atoms(axes[dim]))]
    # A tied table is contracted along both axes: the later use reads what the first one made.
    last = sorted(range(len(axes)), key=lambda dim: order.get(id(axes[dim]), -1))[-1:]
    return with_groups or made[:1] or last


def _reasons(trace: Trace) -> dict[str, str]:
    """Why the pinned axes are pinned, where that is not plain from the model."""
    reasons: dict[str, str] = {}
    for name, axes in trace.state.items():
        for dim, axis in enumerate(axes):
            found = {atom.reason for atom in leaves(axis) if atom.pinned} - {"", OF_AN_INPUT}
            if found and size(axis) > 1:
                reasons[f"{name}[{dim}]"] = "; ".join(sorted(found))
    return reasons
