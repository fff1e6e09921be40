"""The model of the units, and how popularity and new units are priced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from .assignment import Backend
from .gain import Gain, ScalarGain, VectorGain
from .result import Floats, Integers


@dataclass(frozen=True, eq=False)
class Model:
    """The Gaussian model of the units.

    Parameters
    ----------
    local, prior : float or float64 array, shape (D,)
        The variance of a local unit around its global unit, and of the global units.
    mean : float64 array, shape (D,)
        The mean of the global units.
    """

    local: float | Floats
    prior: float | Floats
    mean: Floats

    def gain(self, centre: Floats, log_determinant: bool) -> Gain:
        """Return the model's gain for rows from which ``centre`` was subtracted."""
        mean = self.mean - centre
        if isinstance(self.local, float) and isinstance(self.prior, float):
            return ScalarGain(self.local, self.prior, mean, log_determinant)
        local, prior = (np.broadcast_to(v, mean.shape) for v in (self.local, self.prior))
        return VectorGain(local.copy(), prior.copy(), mean, log_determinant)

    def posterior(self, sums: Floats, popularity: Integers) -> tuple[Floats, Floats]:
        """Return the numerators g_i, (L, D), and precisions S_i, (L, D), from members' sums."""
        precision = 1 / self.prior + popularity[:, None] / self.local
        return self.mean / self.prior + sums / self.local, np.broadcast_to(precision, sums.shape)


@dataclass(frozen=True)
class Rules:
    """How popularity and new units are priced; see :class:`BBPMAP` for the fields."""

    gamma: float
    log_determinant: bool
    popularity_weight: float
    popularity_cap: int
    soft_width: int | Literal["double"] | None
    max_width: int | None
    backend: Backend
    price: float = 0.0

    def slots(self, rows: int, width: int) -> int:
        """Return K, how many new units are open to a client of ``rows`` units.

        Never fewer than leave room for all of its units: where the reference code has fewer, it
        drops units.
        """
        soft = 2 * rows if self.soft_width == "double" else self.soft_width
        slots = rows if soft is None else min(rows, max(soft - width, 1))
        if self.max_width is not None:
            slots = min(slots, self.max_width - width)
        return max(slots, rows - width)

    def popularity_gain(self, popularity: Integers, clients: int) -> Floats:
        """Return ``popularity_weight * log(c / (J - c))``, c = min(n, cap), shape (L,)."""
        capped = np.minimum(popularity, self.popularity_cap)
        # All clients hold a unit only while nobody is taken out, and then nothing is assigned.
        others = np.maximum(clients - capped, 1)
        gain: Floats = self.popularity_weight * np.log(capped / others)
        return gain

    def prices(self, slots: int, clients: int) -> Floats:
        """Return ``price + 2 log k - 2 log(gamma / J)``, k = 1..K, shape (K,)."""
        offset = self.price - 2 * np.log(self.gamma / clients)
        prices: Floats = offset + 2 * np.log(np.arange(1, slots + 1))
        return prices
