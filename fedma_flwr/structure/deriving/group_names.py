"""Names for the groups that were found, and the axis expressions that they make."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from itertools import groupby

from fedma_flwr.structure.axes import AxisExpression, Factor
from fedma_flwr.structure.deriving.atoms import Atom, Axis, Term, expand, leaves
from fedma_flwr.structure.deriving.trace import Trace


def is_group(atom: Atom) -> bool:
    """Whether an atom's positions are units of a group: several, free to be permuted."""
    return not atom.pinned and atom.size > 1


def group_atoms(axis: Axis) -> Iterator[Atom]:
    """The groups on an axis, in its order."""
    return (atom for atom in leaves(axis) if is_group(atom))


def name_groups(trace: Trace, outputs: Mapping[str, int]) -> dict[Atom, str]:
    """A name for every group, in the order of the first tensors that make their units."""
    made = {
        atom
        for name in trace.used
        if trace.state[name]
        for atom in group_atoms(trace.state[name][outputs[name]])
    }
    groups: dict[Atom, str] = {}
    for name in trace.used:
        axes = trace.state[name]
        output = axes[outputs[name]] if axes else ()
        unmade = [f for axis in axes for f in group_atoms(axis) if f not in made]
        for atom in [*unmade, *group_atoms(output)]:
            if atom not in groups:
                groups[atom] = _new_name(name, set(groups.values()))
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


def named_axis(axis: Axis, groups: Mapping[Atom, str]) -> AxisExpression:
    """The expression of an axis; neighbouring fixed sizes become one."""
    terms = [_named_term(term, groups) for term in expand(axis)]
    merged: list[tuple[Factor, ...]] = []
    for is_fixed, run in groupby(
        terms, key=lambda term: isinstance(term[0], int) and len(term) == 1
    ):
        same = list(run)
        merged += (
            [(sum(term[0] for term in same if isinstance(term[0], int)),)] if is_fixed else same
        )
    return AxisExpression(tuple(merged))


def _named_term(term: Term, groups: Mapping[Atom, str]) -> tuple[Factor, ...]:
    named: list[Factor] = []
    for is_group, run in groupby(term, key=lambda atom: atom in groups):
        if is_group:
            named += [groups[atom] for atom in run]
        else:
            named.append(math.prod(atom.size for atom in run))
    return tuple(named) or (1,)
