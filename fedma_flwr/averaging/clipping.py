"""Centred clipping: nobody moves an average further than a client usually is from it.

Trimming needs honest clients that resemble one another: where each knows other classes, the tails
that it cuts off are what single clients know, and poison that stays between them goes through
(Baruch et al., "A Little Is Enough", 2019). Centred clipping (Karimireddy et al., "Learning from
History for Byzantine Robust Optimization", 2021) cuts nobody off: deviations from a centre are
shortened to a radius, and averaged. The paper's centre is the last round's; matched units have
none, since they may be new. Here one is found by some steps from the median on, and the radius is
the median client's distance, so that there is nothing to tune.

Clients that have agreed on what to send deviate in one direction; clients that know different
examples do not. Those that deviate alike share what one of them counts for, after the idea of
Fung et al., "The Limitations of Federated Learning in Sybil Settings", 2020.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fedma_flwr.averaging.robust import lower_median, trimmed_means

#: From the median on, and again with shares; with more, deviations cancel more exactly.
STEPS = 6
#: Entries of a tensor by which clients' directions are compared, at most.
LOOKED_AT = 2**14
#: Squared cosines are 1 / n by chance, of n entries; up to so many times that is no likeness.
_CHANCE = 9.0
_TINY = torch.finfo(torch.float64).tiny


def clipped_mean(values: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """The centre of J tensors, to which their shortened deviations have been added on average.

    A client's distance is the root mean square over the entries that it holds. It is shortened as
    a whole: of two holders of a unit, the one that is usual in its other units has more say.

    Parameters
    ----------
    values : sequence of J tensors
        All of one shape, with at least one axis.
    weights : sequence of J tensors
        Of that shape, float64: each client's weight in each entry, 0 where it does not hold it.

    Returns
    -------
    Tensor
        In float64; 0 where nobody holds an entry.
    """
    centre = trimmed_means(values, weights, torch.full(values[0].shape, torch.inf).double())
    shares = [1.0] * len(values)
    for _ in range(STEPS):
        centre = _next_centre(values, weights, shares, centre)
    # Not before: seen from a centre that poison has moved, the honest deviate alike.
    shares = distinct_shares(values, weights, centre)
    for _ in range(STEPS):
        centre = _next_centre(values, weights, shares, centre)
    return centre


def _next_centre(
    values: Sequence[Tensor], weights: Sequence[Tensor], shares: Sequence[float], centre: Tensor
) -> Tensor:
    """The centre, moved by the mean of the deviations from it, none longer than the median one."""
    distances = [_distance(v, w, centre) for v, w in zip(values, weights, strict=True)]
    radius = lower_median([distance for distance in distances if distance is not None])
    step, total = torch.zeros_like(centre), torch.full_like(centre, _TINY)
    for value, weight, distance, share in zip(values, weights, distances, shares, strict=True):
        if distance is not None:
            shorter = min(1.0, radius / distance) if distance else 1.0
            step += shorter * share * weight * (value.to(torch.float64) - centre)
            total += share * weight
    return centre + step / total


def distinct_shares(
    values: Sequence[Tensor], weights: Sequence[Tensor], centre: Tensor
) -> list[float]:
    """What each of J clients counts for: together, those that deviate alike count as one.

    How alike two are is the square of the cosine between their deviations, without what chance
    makes of it; opposite ones are not alike. Of `LOOKED_AT` entries at most, evenly spread.
    """
    stride = max(-(-centre.numel() // LOOKED_AT), 1)
    rows = []
    for value, weight in zip(values, weights, strict=True):
        deviation = (value.to(torch.float64) - centre) * weight.sqrt()
        row = deviation.flatten()[::stride]
        rows.append(row / row.norm().clamp_min(_TINY))
    directions = torch.stack(rows)
    chance = _CHANCE / max(directions.shape[1], 1)
    if chance >= 1.0:  # few numbers have few directions
        return [1.0] * len(values)
    squares = (directions @ directions.T).clamp(0.0, 1.0).square()
    alike = ((squares - chance) / (1 - chance)).clamp_min(0.0).fill_diagonal_(1.0)
    return [1 / float(together) for together in alike.sum(1)]


def _distance(value: Tensor, weight: Tensor, centre: Tensor) -> float | None:
    """How far a client is from the centre; None if it holds nothing."""
    held = float(weight.sum())
    if held <= 0.0:
        return None
    squares = (value.to(torch.float64) - centre).square() * weight
    return math.sqrt(float(squares.sum()) / held)
