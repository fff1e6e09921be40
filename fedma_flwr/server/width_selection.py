"""Which units of the global model a narrow client is sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

FIRST, POPULAR, ROLLING, RANDOM = WIDTH_SELECTIONS = ("first", "popular", "rolling", "random")
_STREAM = 7  # of the generator, beside those that sample clients


class _Choice(NamedTuple):
    """What one group's units are chosen from: `held` is (L,), how many clients hold each."""

    units: int
    held: Tensor
    round: int
    seed: tuple[int, int]


def choose_units(
    kind: str,
    widths: Mapping[str, int],
    held: Mapping[str, Tensor],
    *,
    number: int,
    seed: int,
) -> dict[str, Tensor]:
    """The units of each group that a narrow client is sent, in their order.

    Parameters
    ----------
    kind : {"first", "popular", "rolling", "random"}
        The first ones (HeteroFL; Diao et al., 2021); those that most clients hold; a window that
        moves on by its width in every round (FedRolex moves by one; Alam et al., 2022); or some
        that are drawn anew in every round, the same for all clients, and of a narrower client some
        of a wider one's.
    widths : mapping of str to int
        The client's, by group.
    held : mapping of str to Tensor
        (L,) how many clients hold each unit of a group.
    number : int
        The round that the units are trained in, from 1.
    seed : int
        Of the run.
    """
    rule = _RULES[kind]
    return {
        group: rule(_Choice(min(units, len(held[group])), held[group], number, (seed, place)))
        for place, (group, units) in enumerate(widths.items())
    }


def _first(choice: _Choice) -> Tensor:
    return torch.arange(choice.units)


def _popular(choice: _Choice) -> Tensor:
    order = torch.argsort(choice.held, descending=True, stable=True)
    return order[: choice.units].sort().values


def _rolling(choice: _Choice) -> Tensor:
    start = (choice.round - 1) * choice.units
    return ((torch.arange(choice.units) + start) % len(choice.held)).sort().values


def _random(choice: _Choice) -> Tensor:
    seed, place = choice.seed
    generator = np.random.default_rng([seed, choice.round, _STREAM, place])
    chosen = generator.permutation(len(choice.held))[: choice.units]
    return torch.from_numpy(np.sort(chosen))


_RULES: Mapping[str, Callable[[_Choice], Tensor]] = {
    FIRST: _first,
    POPULAR: _popular,
    ROLLING: _rolling,
    RANDOM: _random,
}
