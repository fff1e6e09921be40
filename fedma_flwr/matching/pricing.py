"""What popularity is worth and what new units cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from .arrays import Floats, Integers


@dataclass(frozen=True)
class Pricing:
    """How popularity and new units are priced; see :class:`BBPMAP` for the fields.

    `clients` is J, `price` what a new unit costs over and above its gain.
    """

    gamma: float
    popularity_weight: float
    popularity_cap: int
    soft_width: int | Literal["double"] | None
    max_width: int | None
    price: float = 0.0
    clients: int = 1

    def slots(self, rows: int, width: int) -> int:
        """Return K, how many new units there may be for a client of ``rows`` units.

        Never fewer than leave room for all of its units: where the reference code has fewer, it
        drops units.
        """
        soft = 2 * rows if self.soft_width == "double" else self.soft_width
        slots = rows if soft is None else min(rows, max(soft - width, 1))
        if self.max_width is not None:
            slots = min(slots, self.max_width - width)
        return max(slots, rows - width)

    def popularity_gain(self, popularity: Integers) -> Floats:
        """Return ``popularity_weight * log(c / (J - c))``, c = min(n, cap), shape (L,)."""
        capped = np.minimum(popularity, self.popularity_cap)
        # All clients hold a unit only while nobody is taken out, and then nothing is assigned.
        others = np.maximum(self.clients - capped, 1)
        gain: Floats = self.popularity_weight * np.log(capped / others)
        return gain

    def prices(self, slots: int) -> Floats:
        """Return ``price + 2 log k - 2 log(gamma / J)``, k = 1..K, shape (K,)."""
        offset = self.price - 2 * np.log(self.gamma / self.clients)
        prices: Floats = offset + 2 * np.log(np.arange(1, slots + 1))
        return prices
