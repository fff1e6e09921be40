"""What a report shows beside the numbers: a few matched filters, and what heads say of each class.

Small, whatever the model's size: what is larger is left out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from fedma_flwr import reading
from fedma_flwr.averaging import ClientUpdate, HeadSolver, StageOutcome
from fedma_flwr.structure import PermutationSpec

_UNITS = 6
_CLIENTS = 8  # among which the two are looked for that share the most units
_MOST_NUMBERS = 400  # of one filter
_MOST_CLASSES = 20
_LEVELS = 127


def filters_of(
    spec: PermutationSpec,
    updates: Collection[ClientUpdate],
    outcome: StageOutcome,
    client_keys: Sequence[str],
) -> dict[str, Any]:
    """The first layer's filters of a few matched units, of two clients and of their average.

    Parameters
    ----------
    spec : PermutationSpec
        The model's spec.
    updates : collection of J ClientUpdate
        What the clients sent.
    outcome : StageOutcome
        What came of it.
    client_keys : sequence of J str
        Who sent it.

    Returns
    -------
    dict
        ``tensor``, ``shape`` of a filter, two ``clients``, and ``units`` with their ``global``
        index, both ``local`` ones and three ``values``: whole numbers from -127 to 127. Empty if
        no convolution of pictures was matched, or no two clients share a unit.
    """
    found = _first_layer(spec, outcome)
    if found is None or len(updates) < 2:
        return {}
    name, group = found
    mean = outcome.tensors[name]
    own = [{int(u): i for i, u in enumerate(a[group])} for a in outcome.assignments[:_CLIENTS]]
    pair, shared = _closest(own)
    sizes = mean.flatten(1).norm(dim=1)
    chosen = sorted(shared, key=lambda unit: -float(sizes[unit]))[:_UNITS]
    sent = [update.tensors[name] for update in list(updates)[:_CLIENTS]]
    units = [
        {
            "global": unit,
            "local": [own[client][unit] for client in pair],
            "values": _levels([*(sent[client][own[client][unit]] for client in pair), mean[unit]]),
        }
        for unit in chosen
    ]
    keys = [reading.plain(client_keys[client]) for client in pair]
    shape = list(mean.shape[1:])
    return {"tensor": name, "shape": shape, "clients": keys, "units": units} if units else {}


def _closest(own: Sequence[Mapping[int, int]]) -> tuple[tuple[int, int], list[int]]:
    """The two clients that share the most units, and these."""
    both = {(a, b): own[a].keys() & own[b].keys() for a, b in combinations(range(len(own)), 2)}
    pair = max(both, key=lambda two: len(both[two]))
    return pair, sorted(both[pair])


def _first_layer(spec: PermutationSpec, outcome: StageOutcome) -> tuple[str, str] | None:
    """The first convolution of pictures that was matched, and its group."""
    for name in spec.axes:
        tensor, groups = outcome.tensors.get(name), spec.tensor_groups(name)
        if tensor is None or tensor.dim() != 4 or len(groups) != 1:
            continue
        (group,) = groups
        channels, height, width = tensor.shape[1:]
        fits = channels in (1, 3) and min(height, width) > 1
        if fits and tensor[0].numel() <= _MOST_NUMBERS and outcome.widths.get(group) == len(tensor):
            return name, group
    return None


def _levels(filters: Sequence[Tensor]) -> list[list[int]]:
    """Filters on one scale, as whole numbers."""
    flat = torch.stack([each.flatten().to(torch.float32) for each in filters])
    largest = float(flat.abs().max()) or 1.0
    levels: list[list[int]] = (flat / largest * _LEVELS).round().int().tolist()
    return levels


def scores_of(
    solver: HeadSolver | None,
    updates: Collection[ClientUpdate],
    outcome: StageOutcome,
    before: Mapping[str, Tensor],
) -> dict[str, Any]:
    """What the head gives on average for the examples of each class, before and after it is solved.

    The server has no examples, but the moments tell the mean input of each class. Exact, and all
    that can be said of a confusion without them.

    Parameters
    ----------
    solver : HeadSolver or None
        None: the head is trained.
    updates : collection of ClientUpdate
        With moments, if the head is solved in this stage.
    outcome : StageOutcome
        Has the solved head.
    before : mapping of str to Tensor
        Has the head of before: the clients' average.

    Returns
    -------
    dict
        ``after`` and, where the head of before fits, ``before``: (C, C) lists, a row a true class,
        None for one without examples. Empty if no head was solved, or of more than 20 classes or
        none.
    """
    moments = [update.moments for update in updates if update.moments is not None]
    if solver is None or not outcome.head_solved or not moments:
        return {}
    shapes = {own.cross.shape for own in moments}
    if len(shapes) > 1 or moments[0].squares is not None or len(moments[0].cross) > _MOST_CLASSES:
        return {}
    weights = [update.examples for update in updates if update.moments is not None]
    cross = sum(
        own.cross.to(torch.float64) * (weight / own.examples)
        for own, weight in zip(moments, weights, strict=True)
    )
    heads = {"before": before, "after": outcome.tensors}
    scores = {name: _scores(torch.as_tensor(cross), solver, head) for name, head in heads.items()}
    return {name: rows for name, rows in scores.items() if rows}


def _scores(
    cross: Tensor, solver: HeadSolver, head: Mapping[str, Tensor]
) -> list[list[float] | None]:
    weight = head[solver.head.weight].to(torch.float64).flatten(1)
    if weight.shape != cross[:, :-1].shape:
        return []
    bias = 0.0 if solver.head.bias is None else head[solver.head.bias].to(torch.float64)
    counts = cross[:, -1]
    scores = cross[:, :-1] / counts.clamp_min(1e-30)[:, None] @ weight.T + bias
    return [
        [round(float(score), 3) for score in row] if float(count) > 0 else None
        for row, count in zip(scores, counts, strict=True)
    ]
