"""Growability: zero-padded units must leave the output unchanged."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedma_flwr.structure.proving.invariance import is_chaotic, is_repeatable
from fedma_flwr.structure.proving.model_in_proof import ModelInProof, relative_change
from fedma_flwr.structure.proving.spec_changes import with_growth
from fedma_flwr.structure.refusals import first_line
from fedma_flwr.structure.resizing import resize
from fedma_flwr.structure.restoring import restored
from fedma_flwr.structure.spec import PermutationSpec

#: How many units are added; None doubles the group.
_AMOUNTS = (1, 2, None, 3)
#: Where the old units come to stand among the new ones: after them, around them, before them.
_PLACES = ("first", "middle", "last")

Growth = Mapping[str, Tensor]  # for each group that grows (width,) whether a unit is an old one


#: Why a group cannot grow whose zero-padded units are divided by their norm.
_NOT_FINITE = "zero-padded units make the output infinite or undefined"


def with_proven_growth(
    model: ModelInProof, tolerance: float, generator: torch.Generator
) -> PermutationSpec:
    """The spec of a model in proof with what was found about the growth of its groups.

    Parameters
    ----------
    model : ModelInProof
        The model in proof, at weights on which its output depends.
    tolerance : float
        Relative change that counts as none.
    generator : torch.Generator
        Where rounding errors come from that tell whether training mode can be compared.

    Notes
    -----
    Where zeros make the output infinite or undefined, the rows that make a unit may be divided by
    their norm: they are padded with ones then, and kept as `directions` if that helps.
    """
    spec = model.spec
    reasons = why_not_growable(model, tolerance, generator)
    undefined = {group for group, why in reasons.items() if _NOT_FINITE in why}
    made = {
        name: spec.output_axis(name)
        for name, axes in spec.axes.items()
        if len(axes) > 1 and spec.output_groups(name) & undefined
    }
    if not made:
        return with_growth(spec, reasons)
    model.spec = replace(spec, directions={**spec.directions, **made})
    found = why_not_growable(model, tolerance, generator)
    better = {
        name: dim for name, dim in made.items() if not spec.output_groups(name) & found.keys()
    }
    if not better or found.keys() - reasons.keys():
        return with_growth(spec, reasons)
    return with_growth(replace(spec, directions={**spec.directions, **better}), found)


def why_not_growable(
    model: ModelInProof, tolerance: float, generator: torch.Generator
) -> dict[str, str]:
    """For every group that must keep its width, why.

    Parameters
    ----------
    model : ModelInProof
        The model in proof, at weights on which its output depends.
    tolerance : float
        Relative change that counts as none.
    generator : torch.Generator
        Where rounding errors come from that tell whether training mode can be compared.

    Notes
    -----
    Every group grows by one, two, three units and to twice its width, each with the new units
    before, between and after the old ones; in evaluation mode and, where the model runs in it, in
    training mode. All groups grow together, by different amounts, in twelve trials. In a few more,
    trial ``k`` lets the groups grow whose number has bit ``k`` set: of any two groups one then
    grows without the other. Where a trial fails, those at fault are found by bisection.
    """
    groups = [name for name, group in model.spec.groups.items() if group.growable]
    search = _Search(_Trial(model, tolerance, generator), groups)
    for bit in range(len(groups).bit_length()):
        search.narrow(bit, [g for number, g in enumerate(groups, start=1) if number >> bit & 1])
    for number in range(len(_AMOUNTS) * len(_PLACES)):
        search.narrow(number, groups)
    return search.reasons


class _Search:
    """The groups that are at fault, found by trials of many at once."""

    def __init__(self, trial: _Trial, groups: Sequence[str]) -> None:
        self.trial = trial
        self.number = {name: number for number, name in enumerate(groups)}
        self.reasons: dict[str, str] = {}

    def narrow(self, trial: int, groups: Sequence[str]) -> None:
        """Drop groups until the others grow together in the given trial."""

        def problem(some: Sequence[str]) -> str:
            return self.trial.problem({name: self._growth(trial, name) for name in some})

        left = [name for name in groups if name not in self.reasons]
        while left and (why := problem(left)):
            found = _alone(left, why, problem) or _last_of_shortest(left, why, problem)
            self.reasons.update(found)
            left = [name for name in left if name not in found]

    def _growth(self, trial: int, name: str) -> Tensor:
        size, number = self.trial.model.spec.sizes[name], self.number[name]
        more = _AMOUNTS[(trial + number) % len(_AMOUNTS)] or size
        place = _PLACES[(trial // len(_AMOUNTS) + number) % len(_PLACES)]
        before = {"first": 0, "middle": (size + 1) // 2, "last": size}[place]
        old = torch.ones(size + more, dtype=torch.bool)
        old[before : before + more] = False
        return old


def _alone(
    groups: Sequence[str], why: str, problem: Callable[[Sequence[str]], str]
) -> dict[str, str]:
    """Of groups that fail together those that fail by themselves."""
    if len(groups) == 1:
        return {groups[0]: why}
    middle = len(groups) // 2
    halves = [(half, problem(half)) for half in (groups[:middle], groups[middle:])]
    return {
        name: reason
        for half, cause in halves
        if cause
        for name, reason in _alone(half, cause, problem).items()
    }


def _last_of_shortest(
    groups: Sequence[str], why: str, problem: Callable[[Sequence[str]], str]
) -> dict[str, str]:
    """The last of as few of the first groups as fail together."""
    works, fails = 0, len(groups)
    while fails - works > 1:
        middle = (works + fails) // 2
        if cause := problem(groups[:middle]):
            fails, why = middle, cause
        else:
            works = middle
    return {groups[fails - 1]: f"together with others: {why}"}


class _Trial:
    def __init__(self, model: ModelInProof, tolerance: float, generator: torch.Generator) -> None:
        self.model = model
        self.tolerance = tolerance
        self.references = {False: model.run()}
        model.training = True
        if is_repeatable(model) and not is_chaotic(model, generator):
            self.references[True] = model.run()
        model.training = False

    def problem(self, growth: Growth) -> str:
        """What goes wrong when groups grow as given; empty if nothing."""
        model = self.model
        widths = {name: len(old) for name, old in growth.items()}
        places = {name: old.nonzero()[:, 0] for name, old in growth.items()}
        state = model.spec.expand(model.tensors, places, widths)
        try:
            with restored(model.module):
                own = resize(model.module, state).state_dict()
                for name, tensor in state.items():
                    if tensor is not model.tensors[name]:
                        own[name].copy_(tensor)
                return self._change()
        except Exception as error:  # whatever goes wrong, the group keeps its width
            cause = first_line(error.__cause__ or error)
            return f"the model does not run with more units ({without_sizes(cause)})"
        finally:
            model.training = False

    def _change(self) -> str:
        for training, reference in self.references.items():
            self.model.training = training
            outputs = self.model.run()
            if not relative_change(outputs, reference) < self.tolerance:
                where = " in training mode" if training else ""
                if not all(_as_finite(*pair) for pair in zip(outputs, reference, strict=False)):
                    return _NOT_FINITE + where
                return f"zero-padded units change the output{where}"
        return ""


def _as_finite(output: Tensor, reference: Tensor) -> bool:
    return bool(output.isfinite().all()) or not bool(reference.isfinite().all())


def without_sizes(text: str) -> str:
    """A message without the sizes in it, which example inputs decide."""
    return re.sub(r"\b\d+(x\d+)*\b", "N", text)
