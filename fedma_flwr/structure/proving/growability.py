"""Growability: zero-padded units must leave the output unchanged."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from fedma_flwr.structure.proving.draws import Draws
from fedma_flwr.structure.proving.growth_trials import NOT_FINITE, Trials, Way, growth_of, trials_of
from fedma_flwr.structure.proving.liveness import dead_units
from fedma_flwr.structure.proving.model_in_proof import ModelInProof
from fedma_flwr.structure.proving.spec_changes import with_growth
from fedma_flwr.structure.spec import PermutationSpec

_Problem = Callable[[Sequence[str]], str]
_Kind = tuple[bool, str]
# A group of fewer units may look growable by luck, if some of them are dead.
_NARROW = 32
# Draws of inputs until all units of such groups are alive.
_DRAWS = 4
# So many groups of one kind are tried one by one: mostly all of them are at fault, or none.
_ONE_BY_ONE = 8


def with_proven_growth(model: ModelInProof, draws: Draws, tolerance: float) -> PermutationSpec:
    """The spec of a model in proof with what was found about the growth of its groups.

    Parameters
    ----------
    model : ModelInProof
        The model in proof, at weights on which its output depends.
    draws : Draws
        What it gives as it is, in both modes.
    tolerance : float
        Relative change that counts as none.

    Notes
    -----
    Where zeros make the output infinite or undefined, the rows that make a unit may be divided by
    their norm: they are padded with ones then, and kept as `directions` if that helps.
    """
    spec = model.spec
    reasons = why_not_growable(model, draws, tolerance)
    undefined = {group for group, why in reasons.items() if NOT_FINITE in why}
    made = {
        name: spec.output_axis(name)
        for name, axes in spec.axes.items()
        if len(axes) > 1 and spec.output_groups(name) & undefined
    }
    if not made:
        return with_growth(spec, reasons)
    model.spec = replace(spec, directions={**spec.directions, **made})
    found = why_not_growable(model, draws, tolerance)
    better = {
        name: dim for name, dim in made.items() if not spec.output_groups(name) & found.keys()
    }
    if not better or found.keys() - reasons.keys():
        return with_growth(spec, reasons)
    return with_growth(replace(spec, directions={**spec.directions, **better}), found)


def why_not_growable(model: ModelInProof, draws: Draws, tolerance: float) -> dict[str, str]:
    """For every group that must keep its width, why.

    Parameters
    ----------
    model : ModelInProof
        The model in proof, at weights on which its output depends.
    draws : Draws
        What it gives as it is, in both modes.
    tolerance : float
        Relative change that counts as none.

    Notes
    -----
    Every group grows by one, two, three units and to twice its width, with the new units before,
    between and after the old ones, or spread among them; in evaluation mode and, where the model
    runs in it, in training mode. All groups grow together, by different amounts; some are doubled
    while others keep their width: of any two groups each is doubled once without the other. Where a
    trial fails, those at fault are found by trials of some of the groups; what had grown together
    with them is tried anew without them, since equal growth may only look harmless. Where training
    mode gives the very same numbers, it is tried once with all groups together. A group of few
    units of which some are dead (a ReLU that no input sets going) is tried on more inputs.
    """
    spec = model.spec
    groups = [name for name, group in model.spec.groups.items() if group.growable]
    search = _Search(Trials(model, draws, tolerance), groups)
    search.run()
    dead: dict[str, Tensor] = {}
    with draws.kept():
        for number in range(_DRAWS):
            narrow = {n for n in groups if n not in search.reasons and _is_narrow(spec.sizes[n])}
            found = dead_units(model) if narrow else {}
            dead = {n: own & dead.get(n, own) for n, own in found.items() if n in narrow}
            if not any(bool(own.any()) for own in dead.values()) or number == _DRAWS - 1:
                break
            if draws.look_elsewhere():
                search.run(narrow)  # all: to be cut elsewhere shows in the units of others
    return search.reasons


class _Search:
    """The groups that are at fault, found by trials of many at once."""

    def __init__(self, trials: Trials, groups: Sequence[str]) -> None:
        self.trials = trials
        self.groups = groups
        self.kinds = _kinds(trials.model.spec)
        self.reasons: dict[str, str] = {}

    def run(self, only: Collection[str] | None = None) -> None:
        """Drop groups until the others grow together in all trials, without those dropped."""
        asked = self.groups if only is None else [name for name in self.groups if name in only]
        groups = [name for name in asked if name not in self.reasons]
        trials = trials_of(groups) if groups else []
        passed: dict[int, set[str]] = {}
        while pending := [
            number
            for number in range(len(trials))
            if number not in passed or passed[number] & self.reasons.keys()
        ]:
            for number in pending:
                modes = (False,) if number and self.trials.draws.alike else (False, True)
                passed[number] = set(self.narrow(trials[number], modes))

    def narrow(self, trial: Mapping[str, Way], modes: Sequence[bool]) -> Sequence[str]:
        """Drop groups until the others grow together in the given trial: those that do."""
        sizes = self.trials.model.spec.sizes
        growth = {name: growth_of(sizes[name], way) for name, way in trial.items()}

        def problem(some: Sequence[str], modes: Sequence[bool]) -> str:
            return self.trials.problem({name: growth[name] for name in some}, modes)

        left = [name for name in trial if name not in self.reasons]
        while left and (why := problem(left, modes)):
            failed = (self.trials.failed_in_training,)
            if failed[0] and self.trials.give_up_training_mode():
                continue

            def again(some: Sequence[str], failed: Sequence[bool] = failed) -> str:
                return problem(some, failed)

            found = _alone(left, why, again, self.kinds)
            found = found or _last_of_shortest(left, why, again)
            self.reasons.update(found)
            left = [name for name in left if name not in found]
        return left


def _is_narrow(size: int) -> bool:
    return size < _NARROW


def _alone(
    groups: Sequence[str], why: str, problem: _Problem, kinds: Mapping[str, _Kind]
) -> dict[str, str]:
    """Of groups that fail together those that fail by themselves.

    Parameters
    ----------
    groups : sequence of str
        They fail together.
    why : str
        For what reason; empty if that is only concluded.
    problem : callable
        The reason for which some groups fail; empty if they do not.
    kinds : mapping of str to _Kind
        Of each group: those of one kind mostly fail alike.
    """
    if len(groups) == 1:
        why = why or problem(groups)
        return {groups[0]: why} if why else {}
    parts = _parts(groups, kinds)
    found: dict[str, str] = {}
    for number, part in enumerate(parts):
        if number == len(parts) - 1 and not found:
            found |= _alone(part, "", problem, kinds)
        elif cause := problem(part):
            found |= _alone(part, cause, problem, kinds)
    return found


def _parts(groups: Sequence[str], kinds: Mapping[str, _Kind]) -> list[Sequence[str]]:
    """Groups cut in two, those of a kind kept together; a few of one kind one by one."""
    order = list(dict.fromkeys(kinds[name] for name in groups))
    if len(order) == 1 and len(groups) <= _ONE_BY_ONE:
        return [[name] for name in groups]
    ordered = sorted(groups, key=lambda name: (kinds[name][0], order.index(kinds[name])))
    pairs = enumerate(itertools.pairwise([kinds[name] for name in ordered]), start=1)
    starts = {at: one[0] != other[0] for at, (one, other) in pairs if one != other}
    middle = len(groups) // 2
    if starts:  # groups that share axes with others are apart from the rest, if both are here
        middle = min(starts, key=lambda at: (not starts[at], abs(at - middle)))
    return [ordered[:middle], ordered[middle:]]


def _kinds(spec: PermutationSpec) -> dict[str, _Kind]:
    """What the groups of a spec are: in products with others or not, named alike or not."""
    terms = {term for axes in spec.axes.values() for axis in axes for term in axis.terms}
    nested = {f for term in terms if sum(isinstance(f, str) for f in term) > 1 for f in term}
    return {name: (name in nested, re.sub(r"\d+", "", name)) for name in spec.groups}


def _last_of_shortest(groups: Sequence[str], why: str, problem: _Problem) -> dict[str, str]:
    """The last of as few of the first groups as fail together."""
    works, fails = 0, len(groups)
    while fails - works > 1:
        middle = (works + fails) // 2
        if cause := problem(groups[:middle]):
            fails, why = middle, cause
        else:
            works = middle
    return {groups[fails - 1]: f"together with others: {why}"}
