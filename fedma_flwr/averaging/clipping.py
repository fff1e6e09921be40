"""Centred clipping: nobody moves an average further than a client usually is from it.

Trimming needs honest clients that resemble one another: where each knows other classes, the tails
that it cuts off are what single clients know, and poison that stays between them goes through
(Baruch et al., "A Little Is Enough", 2019). Centred clipping (Karimireddy et al., "Learning from
History for Byzantine Robust Optimization", 2021) cuts nobody off: deviations from a centre are
shortened to a radius, and averaged. The paper's centre is the last round's; matched units have
none, since they may be new. Here one is found by some steps from the median on, and the radius is
the median client's distance, so that there is nothing to tune.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fedma_flwr.averaging.robust import lower_median, trimmed_means

#: From the median on; with more, deviations cancel more exactly. Each reads all values twice.
STEPS = 8
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
    total = torch.stack(list(weights)).sum(0).clamp_min(_TINY)
    centre = trimmed_means(values, weights, torch.full(values[0].shape, torch.inf).double())
    for _ in range(STEPS):
        distances = [_distance(v, w, centre) for v, w in zip(values, weights, strict=True)]
        radius = lower_median([distance for distance in distances if distance is not None])
        step = torch.zeros_like(centre)
        for value, weight, distance in zip(values, weights, distances, strict=True):
            if distance is not None:
                share = min(1.0, radius / distance) if distance else 1.0
                step += share * weight * (value.to(torch.float64) - centre)
        centre = centre + step / total
    return centre


def _distance(value: Tensor, weight: Tensor, centre: Tensor) -> float | None:
    """How far a client is from the centre; None if it holds nothing."""
    held = float(weight.sum())
    if held <= 0.0:
        return None
    squares = (value.to(torch.float64) - centre).square() * weight
    return math.sqrt(float(squares.sum()) / held)
