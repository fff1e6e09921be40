"""Moments with differential privacy: bounded examples, Gaussian noise, and moments again.

An example's inputs are scaled to a norm of at most 1 and its targets are probabilities. Then what
it adds to ``sum phi phi^T``, to ``sum y phi^T`` and to ``sum y`` has a norm of at most 1 each, and
all three together one of the square root of 3: the most that adding or removing one example can
change. Noise in proportion to that is the Gaussian mechanism; with ``noise_multiplier`` sigma it
is ``1 / (2 sigma^2)``-zCDP (Bun and Steinke, 2016). What follows only computes on what is
private already, and costs nothing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedma_flwr.averaging.head_moments import HeadMoments, upper_triangle

#: Norm of what an example adds, at most: `bounded_sums` of one example.
SENSITIVITY = math.sqrt(3.0)
_LEAST = 1e-9  # of an example: what is less counts as none


def bounded_rows(features: Tensor, max_norm: float) -> Tensor:
    """Rows in units of `max_norm` and no longer than 1; float64. Those not finite become zeros.

    Parameters
    ----------
    features : Tensor
        (n, d).
    max_norm : float
        The norm to which longer rows are scaled down.
    """
    rows = features.detach().to("cpu", torch.float64) / max_norm
    rows = torch.where(rows.isfinite().all(1, keepdim=True), rows, 0.0)
    bounded: Tensor = rows / rows.norm(dim=1, keepdim=True).clamp_min(1.0)
    return bounded


def bounded_sums(rows: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """What examples add to the moments.

    Parameters
    ----------
    rows : Tensor
        (n, d), of norm 1 at most.
    targets : Tensor
        (n, C); each row is taken as probabilities: not negative, 1 in all.
    weights : Tensor
        (n,) from 0 up, of an example's rows 1 in all: it counts as their mean.

    Returns
    -------
    gram : Tensor
        (d (d + 1) / 2,), float64.
    cross : Tensor
        (C, d + 1), float64; the last column has the counts.
    """
    shares = targets.detach().to("cpu", torch.float64).clamp_min(0.0)
    shares = shares / shares.sum(1, keepdim=True).clamp_min(_LEAST) * weights[:, None]
    ones = torch.cat([rows, torch.ones_like(rows[:, :1])], 1)
    return upper_triangle(rows.T @ (rows * weights[:, None])), shares.T @ ones


def add_noise(
    gram: Tensor, cross: Tensor, noise_multiplier: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The Gaussian mechanism on sums of `bounded_sums`."""
    deviation = noise_multiplier * SENSITIVITY

    def noisy(sums: Tensor) -> Tensor:
        noise = torch.randn(sums.shape, dtype=torch.float64, generator=generator)
        return sums + deviation * noise

    return noisy(gram), noisy(cross)


def as_moments(gram: Tensor, cross: Tensor, max_norm: float) -> HeadMoments:
    """The nearest sums that examples can have, of an average example and in the inputs' units.

    Class by class ``|sum y_c phi| <= sum y_c``, since no input is longer than 1. Given these, the
    squares are at least ``sum_c s_c s_c^T / n_c``, with class sums s_c and counts n_c, and their
    trace is at most the number of examples: what is nearest to them within that is found by
    eigenvalues. It takes away most of the noise where there are many inputs.

    Parameters
    ----------
    gram : Tensor
        (d (d + 1) / 2,), float64.
    cross : Tensor
        (C, d + 1), float64.
    max_norm : float
        See `bounded_rows`.

    Returns
    -------
    HeadMoments
        float32. If the noise has left no example, of inputs that are 0.
    """
    counts = cross[:, -1].clamp_min(0.0)
    if float(counts.sum()) <= _LEAST:
        counts = torch.full_like(counts, 1 / len(counts))
        gram, cross = torch.zeros_like(gram), torch.zeros_like(cross)
    sums = cross[:, :-1]
    sums = sums * (counts / sums.norm(dim=1).clamp_min(_LEAST)).clamp_max(1.0)[:, None]
    least = (sums / counts.clamp_min(_LEAST)[:, None]).T @ sums
    examples = float(counts.sum())
    rest = _square(gram, sums.shape[1]) - least
    square = least + _nearest(rest, max(examples - float(least.trace()), 0.0))
    scaled = torch.cat([sums * max_norm, counts[:, None]], 1) / examples
    own = upper_triangle(square) * (max_norm**2 / examples)
    return HeadMoments(own.to(torch.float32), scaled.to(torch.float32))


def _square(triangle: Tensor, inputs: int) -> Tensor:
    rows, columns = torch.triu_indices(inputs, inputs).unbind()
    square = triangle.new_zeros(inputs, inputs)
    square[rows, columns] = square[columns, rows] = triangle
    return square


def _nearest(square: Tensor, most: float) -> Tensor:
    """The nearest positive semidefinite matrix of at most that trace."""
    values, vectors = torch.linalg.eigh(square)
    kept = values.clamp_min(0.0)
    if float(kept.sum()) > most:
        ordered = values.flip(0)  # from the largest down
        places = torch.arange(1, len(values) + 1, dtype=values.dtype)
        steps = (ordered.cumsum(0) - most) / places
        last = max(int((ordered > steps).sum()) - 1, 0)  # -1 where nothing at all is left
        kept = (values - steps[last]).clamp_min(0.0)
    nearest: Tensor = (vectors * kept) @ vectors.T
    return nearest


def rho_of(noise_multiplier: float) -> float:
    """The zCDP of a Gaussian mechanism; those of several add up."""
    return 1.0 / (2.0 * noise_multiplier**2)


def epsilon_of(rho: float, delta: float) -> float:
    """Epsilon for a delta of what is rho-zCDP (Bun and Steinke, 2016, proposition 1.3).

    Parameters
    ----------
    rho : float
        From 0 up.
    delta : float
        Between 0 and 1.
    """
    return rho + 2.0 * math.sqrt(rho * math.log(1.0 / delta))
