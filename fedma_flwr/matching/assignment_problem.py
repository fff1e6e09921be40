"""One update's assignment problem."""

from __future__ import annotations

from typing import NamedTuple

from .arrays import Floats

NEW = -1
"""The column of a row that opens a new unit."""


class Problem(NamedTuple):
    """Every row wants an existing unit, each of which has room for one row, or a new one."""

    existing: Floats
    """Gain of row l in existing unit i, shape (n, L); a column of -infinity is no unit."""
    new: Floats
    """Gain of row l in a new unit, before the new unit's price, shape (n,)."""
    prices: Floats
    """Price of the k-th new unit, increasing, shape (K,); n <= L + K."""
