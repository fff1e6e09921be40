"""Variances from the data, so that the units' scale does not matter.

Two facts about the units are compared, both in *relative distance*
``|w - w'|^2 / (|w|^2 + |w'|^2)`` of centred rows, 0 for equal and about 1 for unrelated ones:

- how far a unit is from the nearest unit of *another client*, its counterpart if it has one;
- how far it is from the nearest *other unit of its own client*, which is certainly not its
  counterpart.

Where a share of the first is far below the second, units recur, and the line between the same
and a different unit is drawn between the two. Where it is not (networks trained from different
initialisations), nothing tells units apart, so that no line can be drawn: then the beta process
alone says how many units there are, with a mass in proportion to the width, and likeness says
which of them are merged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from .arrays import Floats
from .global_units import best_device

# The mass of the beta process, as a part of the width, where nothing tells units apart. On LeNets
# from own initialisations more than that costs bytes, less costs accuracy (benchmarks/README.md).
_MASS = 0.1
_SMALL = 1e-6  # the variances beside the units' own: see calibrate
_PAIRS = 8  # pairs of clients that are compared
_ROWS = 256  # units of a client that look for their nearest
_NEAR = 1 / 3  # a counterpart is nearer than this part of the own client's nearest unit
_SHARE = 0.05  # so many units must have a counterpart for it to be a fact
_CLEAR = 1 / 16  # counterparts nearer than this part (0 for equal clients) count as this far
_BLOCK = 512


class Calibration(NamedTuple):
    """What the data say about the scale of the units."""

    local: float  # the local variance
    prior: float  # the prior variance
    price: float  # of a new global unit, over and above its gain
    mass: float  # of the beta process
    told: bool  # whether the data tell units apart, so that the logarithms only break ties


def calibrate(units: Sequence[Floats], mean: Floats, gamma: float) -> Calibration:
    """Return variances, a price and a mass for which units that recur are found.

    Parameters
    ----------
    units : sequence of J float arrays, shapes (L_j, D)
    mean : float64 array, shape (D,)
        The prior mean, subtracted from all rows.
    gamma : float
        The larger, the more units: see :class:`BBPMAP`.
    """
    rows = sum(len(array) for array in units)
    squares = sum(float(_squares(array, mean).sum()) for array in units)
    # Units this small are as good as zero; variances on their scale could not be divided by.
    norm = squares / rows if squares / rows > 1e-100 else 1.0
    line = _line(units, mean)
    if line is None:
        # Rows of mean square norm 1 with variances 1: the quadratic gains, below 1, then choose
        # among global units; popularity and the mass decide when a new one is opened.
        return Calibration(norm, norm, 0.0, gamma * _MASS * max(map(len, units)), told=False)
    return _told(line / (1 - line) / gamma, norm, len(mean))


def _told(odds: float, norm: float, size: int) -> Calibration:
    """Return what merges units nearer than the relative distance t, ``odds = t / (1 - t)``.

    Let two single units of usual norm be merged below t. By variances alone that is
    local / prior = t / (1 - t), and a unit near the prior mean, which is as well explained by
    no global unit at all, would be merged with none; by a price alone, long units would not be
    merged. So each of the two gives half of t.

    Both variances are scaled down together, the limit in which k-means follows from a Gaussian
    mixture and BP-means from this model (Broderick et al., "MAD-Bayes", ICML 2013): the
    logarithms of popularities and of new units only break ties, as they cannot be right at
    every signature size at once.
    """
    prior = _SMALL * norm / size
    merged = odds / (1 + odds)
    ratio = merged / (2 - merged)
    price = merged / (ratio + 2) * norm / (ratio * prior)
    return Calibration(ratio * prior, prior, price, mass=1.0, told=True)


def _line(units: Sequence[Floats], mean: Floats) -> float | None:
    """Return the relative distance between the same and a different unit, or None."""
    if len(units) == 1:
        return None
    clients = np.unique(np.linspace(0, len(units) - 1, _PAIRS).astype(int))
    own = [_nearest(units[k], units[k], mean, same=True) for k in clients]
    across = [_nearest(units[k], units[(k + 1) % len(units)], mean) for k in clients]
    alone = float(np.median(np.concatenate(own)))
    nearest = np.concatenate(across)
    counterparts = nearest[nearest < _NEAR * alone]
    if len(counterparts) < _SHARE * len(nearest):
        return None
    far = max(float(np.quantile(counterparts, 0.95)), _CLEAR * alone)
    return float(np.sqrt(far * alone))


def _nearest(left: Floats, right: Floats, mean: Floats, same: bool = False) -> Floats:
    """Return the relative distance of rows of ``left`` to their nearest in ``right``.

    With ``same`` the arrays are one, and a row is not its own neighbour.
    """
    chosen = np.unique(np.linspace(0, len(left) - 1, _ROWS).astype(int))
    left = left[chosen]
    device = best_device()
    cross = torch.zeros(len(left), len(right), dtype=torch.float64, device=device)
    for start in range(0, len(mean), _BLOCK):
        block = slice(start, start + _BLOCK)
        a, b = (torch.from_numpy(x[:, block] - mean[block]).to(device) for x in (left, right))
        cross.addmm_(a, b.T)
    total = _squares(left, mean)[:, None] + _squares(right, mean)
    relative = 1 - 2 * cross.cpu().numpy() / np.where(total > 0, total, np.inf)
    relative[total == 0] = 0.0
    if same:
        relative[np.arange(len(left)), chosen] = 1.0
    nearest: Floats = relative.min(1).clip(0.0, 1.0)
    return nearest


def _squares(units: Floats, mean: Floats) -> Floats:
    """Return every row's squared distance from ``mean``, shape (L_j,)."""
    squares = np.zeros(len(units))
    for start in range(0, len(mean), _BLOCK):
        block = slice(start, start + _BLOCK)
        centred = units[:, block] - mean[block]
        squares += np.einsum("ld,ld->l", centred, centred)
    return squares
