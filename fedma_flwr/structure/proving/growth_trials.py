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

#: How many units are added; None doubles the group.
_AMOUNTS = (1, 2, None, 3)
#: Where the old units come to stand among the new ones: after them, around them, before them.
_PLACES = ("first", "middle", "last")
#: Trials that a group grows in beside the one of all groups.
_OTHERS = 4
#: So many amounts there are in that one, of neighbours all different.
_UNLIKE = 7
#: Of the others the one in which the new units are spread among the old ones.
_SPREAD = 3

Growth = Mapping[str, Tensor]  # for each group that grows (width,) whether a unit is an old one

#: Why a group cannot grow whose zero-padded units are divided by their norm.
NOT_FINITE = "zero-padded units make the output infinite or undefined"


def trials_of(groups: Sequence[str]) -> list[dict[str, int]]:
    """What grows in each trial, and which of its ways of growing it takes: one of five.

    Parameters
    ----------
    groups : sequence of str
        All that may grow.

    Returns
    -------
    list of dict of str to int
        First all groups together. In the others each group grows four times, so chosen that of
        any two groups each grows once without the other: no two are chosen alike.
    """
    count = _OTHERS
    while math.comb(count, _OTHERS) < len(groups):
        count += 1
    trials: list[dict[str, int]] = [{} for _ in range(count)]
    for group, chosen in zip(groups, itertools.combinations(range(count), _OTHERS), strict=False):
        for way, trial in enumerate(chosen, start=1):
            trials[trial][group] = way
    return [dict.fromkeys(groups, 0), *trials]


def growth_of(size: int, number: int, way: int) -> Tensor:
    """How a group grows: by one to seven units, then in some order by 1, 2, 3 and its width.

    Parameters
    ----------
    size : int
        Its width.
    number : int
        Its number among all groups: neighbours grow by different amounts, at different places.
    way : int
        0 to 4.

    Returns
    -------
    Tensor
        (width,) whether a unit is an old one.
    """
    more = (1 + number % _UNLIKE) if way == 0 else _AMOUNTS[(number + way) % len(_AMOUNTS)] or size
    old = torch.ones(size + more, dtype=torch.bool)
    if way == _SPREAD:
        old[:] = False
        old[torch.arange(size) * (size + more) // size] = True
        return old
    place = _PLACES[(number + way) % len(_PLACES)]
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
