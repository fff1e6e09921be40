"""From propagated axes to a spec: groups in forward order, named after what makes their units."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from fedma_flwr.structure.axes import AxisExpression
from fedma_flwr.structure.axes import Factor as NamedFactor
from fedma_flwr.structure.deriving.factors import (
    Axes,
    Axis,
    Factor,
    Term,
    expand,
    leaves,
    pin,
    size,
)
from fedma_flwr.structure.spec import PermutationSpec
from fedma_flwr.structure.state_dict_names import named_variances
from fedma_flwr.structure.unit_groups import UnitGroup


@dataclass
class Trace:
    """What propagation has learned.

    Parameters
    ----------
    state : dict of str to Axes
        The axes of every tensor of the state dict, under one name for each tied parameter.
    names : dict of str to str
        For every name of the state dict the name that `state` has it under.
    buffers : frozenset of str
        The names of the state dict that are no parameters.
    placeholders : dict of str to str
        For the inputs of the graph that are tensors of the state dict, their name there.
    used : dict of str to None
        The tensors that some operator reads, in that order.
    contracted : list of Axis
        Axes of weights that are summed over or looked up, in that order.
    variances : list of (Axes, Axes)
        Tensors that an operator reads as a running variance, and the running mean beside each.
    outputs : list of Axis
        The axes of the model's outputs.
    """

    state: dict[str, Axes]
    names: dict[str, str]
    buffers: frozenset[str]
    placeholders: dict[str, str] = field(default_factory=dict)
    used: dict[str, None] = field(default_factory=dict)
    contracted: list[Axis] = field(default_factory=list)
    variances: list[tuple[Axes, Axes]] = field(default_factory=list)
    outputs: list[Axis] = field(default_factory=list)

    def axes_of(self, name: str) -> Axes:
        """The axes of a tensor of the state dict."""
        return self.state[self.names[name]]

    def use(self, placeholder: str) -> None:
        """Note that an operator reads an input of the graph."""
        if placeholder in self.placeholders:
            self.used.setdefault(self.names[self.placeholders[placeholder]])

    def is_used(self, name: str) -> bool:
        """Whether an operator reads a tensor of the state dict."""
        return self.names[name] in self.used


def build_spec(trace: Trace) -> PermutationSpec:
    """The spec that a trace amounts to; all groups are taken to be growable."""
    for name, axes in trace.state.items():
        for axis in axes:
            if name not in trace.used:
                pin(axis)
            _pin_squares(axis)
    outputs = _output_axes(trace)
    _pin_unmade(trace, outputs)
    groups = _name_groups(trace, outputs)
    named = {own: tuple(_named(a, groups) for a in axes) for own, axes in trace.state.items()}
    axes_of = {name: named[own] for name, own in trace.names.items()}
    statistics = [
        n for n, own in axes_of.items() if n in trace.buffers and any(a.groups for a in own)
    ]
    head = _head(trace, named, outputs)
    return PermutationSpec(
        groups={name: UnitGroup(factor.size) for factor, name in groups.items()},
        axes=axes_of,
        outputs={name: outputs[own] for name, own in trace.names.items() if outputs[own]},
        statistics=statistics,
        head=[name for name, own in trace.names.items() if own in head],
        pinned=_reasons(trace),
        variances=_variances(trace, axes_of, statistics),
    )


def _head(
    trace: Trace, named: Mapping[str, tuple[AxisExpression, ...]], outputs: Mapping[str, int]
) -> list[str]:
    """The tensors whose output axis has no groups and is one of the model's outputs."""
    at_outputs = {factor for axis in trace.outputs for factor in leaves(axis)}
    return [
        name
        for name, axes in trace.state.items()
        if axes
        and not named[name][outputs[name]].groups
        and at_outputs.intersection(leaves(axes[outputs[name]]))
    ]


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
        for factor in term:
            if term.count(factor) > 1:
                pin(((factor,),), "it is multiplied with itself")


def _pin_unmade(trace: Trace, outputs: Mapping[str, int]) -> None:
    """Pin groups whose units no parameter makes: they could not be told apart when matched."""
    made = {
        factor
        for name, axes in trace.state.items()
        if axes and name not in trace.buffers
        for factor in leaves(axes[outputs[name]])
    }
    for axes in trace.state.values():
        for axis in axes:
            for factor in leaves(axis):
                if factor not in made:
                    pin(((factor,),), "no parameter makes its units" if _is_group(factor) else "")


def _is_group(factor: Factor) -> bool:
    return not factor.pinned and factor.size > 1


def _group_factors(axis: Axis) -> Iterator[Factor]:
    return (factor for factor in leaves(axis) if _is_group(factor))


def _output_axes(trace: Trace) -> dict[str, int]:
    """The axis along which each tensor makes units: the first with groups that is not contracted.

    A weight of several networks side by side (experts, heads) has more than one such axis: then
    that of units which no other tensor makes.
    """
    candidates = {name: _uncontracted(trace, name) for name in trace.state}
    made = {
        factor
        for name, dims in candidates.items()
        if len(dims) == 1
        for factor in _group_factors(trace.state[name][dims[0]])
    }

    def makes_new(name: str, dim: int) -> bool:
        return not made.issuperset(_group_factors(trace.state[name][dim]))

    return {
        name: next((dim for dim in dims if makes_new(name, dim)), dims[0] if dims else 0)
        for name, dims in candidates.items()
    }


def _uncontracted(trace: Trace, name: str) -> list[int]:
    """The axes along which a tensor may make units: some, unless it has no axes."""
    axes = trace.state[name]
    order = {id(axis): position for position, axis in enumerate(trace.contracted)}
    made = [dim for dim, axis in enumerate(axes) if id(axis) not in order]
    with_groups = [dim for dim in made if any(_group_factors(axes[dim]))]
    # A tied table is contracted along both axes: the later use reads what the first one made.
    last = sorted(range(len(axes)), key=lambda dim: order.get(id(axes[dim]), -1))[-1:]
    return with_groups or made[:1] or last


def _name_groups(trace: Trace, outputs: Mapping[str, int]) -> dict[Factor, str]:
    """A name for every group, in the order of the first tensors that make their units."""
    made = {
        factor
        for name in trace.used
        if trace.state[name]
        for factor in _group_factors(trace.state[name][outputs[name]])
    }
    groups: dict[Factor, str] = {}
    for name in trace.used:
        axes = trace.state[name]
        output = axes[outputs[name]] if axes else ()
        unmade = [f for axis in axes for f in _group_factors(axis) if f not in made]
        for factor in [*unmade, *_group_factors(output)]:
            if factor not in groups:
                groups[factor] = _new_name(name, set(groups.values()))
    return groups


def _new_name(tensor: str, taken: set[str]) -> str:
    """The module that makes the units, and where it makes several groups what tells them apart."""
    module, _, leaf = tensor.rpartition(".")
    base = module if module and re.fullmatch(r"(\w+_)?(weight|bias)(_\w+)?", leaf) else tensor
    base = re.sub(r"[^\w.\-]", "_", base)
    base = f"{base}." if base.isdigit() else base
    layer = re.fullmatch(r"(?:weight|bias)_(?:ih|hh)_(l\d+.*)", leaf)
    candidates = [base, f"{base}.{layer[1]}" if layer else base]
    candidates += [f"{base}.units{number}" for number in range(2, len(taken) + 3)]
    return next(name for name in candidates if name not in taken)


def _named(axis: Axis, groups: Mapping[Factor, str]) -> AxisExpression:
    """The expression of an axis; neighbouring fixed sizes become one."""
    terms = [_named_term(term, groups) for term in expand(axis)]
    merged: list[tuple[NamedFactor, ...]] = []
    for is_fixed, run in groupby(
        terms, key=lambda term: isinstance(term[0], int) and len(term) == 1
    ):
        same = list(run)
        merged += (
            [(sum(term[0] for term in same if isinstance(term[0], int)),)] if is_fixed else same
        )
    return AxisExpression(tuple(merged))


def _named_term(term: Term, groups: Mapping[Factor, str]) -> tuple[NamedFactor, ...]:
    named: list[NamedFactor] = []
    for is_group, run in groupby(term, key=lambda factor: factor in groups):
        if is_group:
            named += [groups[factor] for factor in run]
        else:
            named.append(math.prod(factor.size for factor in run))
    return tuple(named) or (1,)


def _reasons(trace: Trace) -> dict[str, str]:
    """Why the pinned axes are pinned, where that is not plain from the model."""
    reasons: dict[str, str] = {}
    for name, axes in trace.state.items():
        for dim, axis in enumerate(axes):
            found = {factor.reason for factor in leaves(axis) if factor.pinned and factor.reason}
            if found and size(axis) > 1:
                reasons[f"{name}[{dim}]"] = "; ".join(sorted(found))
    return reasons
