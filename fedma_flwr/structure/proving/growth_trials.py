"""Trials of growth: which groups grow by how many units, and where the new ones stand."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedma_flwr.structure.model_copies import tensors_of
from fedma_flwr.structure.proving.draws import Draws
from fedma_flwr.structure.proving.invariance import is_comparable
from fedma_flwr.structure.proving.model_in_proof import ModelInProof, relative_change
from fedma_flwr.structure.refusals import first_line
from fedma_flwr.structure.resizing import resize
from fedma_flwr.structure.restoring import restored

#: Orders in which neighbours grow by these amounts in the trials of all groups together.
_AMOUNTS = tuple(itertools.permutations((1, 2, 3)))
#: Where the new units come to stand: before the old ones, between them, after them, and spread.
_PLACES = ("first", "middle", "last", "spread")
#: Fewest trials in which groups are doubled.
_DOUBLED = 4

Way = tuple[int, str]  # how many units are added (0: as many as there are), and where
Growth = Mapping[str, Tensor]  # for each group that grows (width,) whether a unit is an old one

#: Why a group cannot grow whose zero-padded units are divided by their norm.
NOT_FINITE = "zero-padded units make the output infinite or undefined"


def trials_of(groups: Sequence[str]) -> list[dict[str, Way]]:
    """What grows in each trial, and how.

    Parameters
    ----------
    groups : sequence of str
        All that may grow.

    Returns
    -------
    list of dict of str to Way
        First three trials of all groups together, in which each grows by one, two and three units
        in an order that differs from its neighbours', before, between and after the old ones. In
        the others some groups are doubled, and the rest keeps its width, so chosen that of any two
        groups each is doubled once while the other is not: no two are chosen alike.
    """
    numbered = list(enumerate(groups))
    trials: list[dict[str, Way]] = [
        {
            group: (_AMOUNTS[number % len(_AMOUNTS)][trial], _PLACES[(number + trial) % 3])
            for number, group in numbered
        }
        for trial in range(3)
    ]
    count = _DOUBLED
    while math.comb(count, count // 2) < len(groups):
        count += 1
    times = next(k for k in range(2, count) if math.comb(count, k) >= len(groups))
    doubled: list[dict[str, Way]] = [{} for _ in range(count)]
    chosen = itertools.combinations(range(count), times)
    for (number, group), own in zip(numbered, chosen, strict=False):
        for at, trial in enumerate(own):
            doubled[trial][group] = (0, _PLACES[(number + 1 + 2 * at) % len(_PLACES)])
    return [trial for trial in (*trials, *doubled) if trial]


def growth_of(size: int, way: Way) -> Tensor:
    """How a group grows.

    Parameters
    ----------
    size : int
        Its width.
    way : (int, str)
        How many units are added, and where.

    Returns
    -------
    Tensor
        (width,) whether a unit is an old one.
    """
    more, place = way[0] or size, way[1]
    old = torch.ones(size + more, dtype=torch.bool)
    if place == "spread":
        old[:] = False
        old[torch.arange(size) * (size + more) // size] = True
        return old
    before = {"first": 0, "middle": (size + 1) // 2, "last": size}[place]
    old[before : before + more] = False
    return old


class Trials:
    """Grow a model in proof, and say what goes wrong.

    Parameters
    ----------
    model : ModelInProof
        The model in proof, at weights on which its output depends.
    draws : Draws
        What it gives as it is, in both modes.
    tolerance : float
        Relative change that counts as none.

    Attributes
    ----------
    failed_in_training : bool
        Whether it was training mode in which the last trial failed that did.
    """

    def __init__(self, model: ModelInProof, draws: Draws, tolerance: float) -> None:
        self.model, self.draws, self.tolerance = model, draws, tolerance
        self.failed_in_training = False

    def problem(self, growth: Growth, modes: Sequence[bool]) -> str:
        """What goes wrong when groups grow as given; empty if nothing.

        Parameters
        ----------
        growth : mapping of str to Tensor
            As `growth_of` gives it.
        modes : sequence of bool
            Whether to try training mode, for each mode to try.
        """
        model = self.model
        widths = {name: len(old) for name, old in growth.items()}
        places = {name: old.nonzero()[:, 0] for name, old in growth.items()}
        touched = {n for n in model.tensors if model.spec.tensor_groups(n) & widths.keys()}
        grown = {n: model.tensors[n] for n in touched}
        state = {**model.tensors, **model.spec.expand(grown, places, widths)}
        try:
            with restored(model.module):
                own = tensors_of(resize(model.module, state))
                for name in grown:
                    new = state[name]  # in place of what `resize` has put there, without a copy
                    own[name].set_(new.untyped_storage(), 0, new.shape, new.stride())
                return self._change(modes)
        except Exception as error:  # whatever goes wrong, the group keeps its width
            self.failed_in_training = model.training
            cause = first_line(error.__cause__ or error)
            return f"the model does not run with more units ({without_sizes(cause)})"
        finally:
            model.training = False

    def _change(self, modes: Sequence[bool]) -> str:
        for training in modes:
            reference = self.draws.training if training else self.draws.evaluation
            if reference is None:
                continue
            self.model.training = training
            outputs = self.model.run()
            if not relative_change(outputs, reference) < self.tolerance:
                self.failed_in_training = training
                where = " in training mode" if training else ""
                if not all(_as_finite(*pair) for pair in zip(outputs, reference, strict=False)):
                    return NOT_FINITE + where
                return f"zero-padded units change the output{where}"
        return ""

    def give_up_training_mode(self) -> bool:
        """Whether training mode cannot be compared after all: then it is tried no more."""
        if self.draws.training is None or self.draws.training_compared:
            return False
        self.model.training = True
        comparable = is_comparable(self.model, self.draws.training, self.draws.generator)
        self.model.training = False
        self.draws.training_compared = comparable
        if not comparable:
            self.draws.training = None
        return not comparable


def _as_finite(output: Tensor, reference: Tensor) -> bool:
    return bool(output.isfinite().all()) or not bool(reference.isfinite().all())


def without_sizes(text: str) -> str:
    """A message without the sizes in it, which example inputs decide."""
    return re.sub(r"\b\d+(x\d+)*\b", "N", text)
