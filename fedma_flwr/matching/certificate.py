"""Is an assignment the best one? Prices that support it say so, without solving anything.

Let every existing unit have a price, 0 where no row has it, and new units another. If every row
has what is best for it at these prices, no other assignment has a larger total gain: linear
programming duality, or a competitive equilibrium (Shapley and Shubik, "The assignment game I",
International Journal of Game Theory, 1971). The least such prices are found by raising them
where a row would rather have another's unit; they exist if and only if the assignment is
optimal.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .result import Floats, Integers

NEW = -1
"""The column of a row that opens a new unit."""

# A path of so many rows, each wanting the next one's unit, is not followed further: doubt is
# always a safe answer.
_MAX_RAISES = 24


class Verdict(NamedTuple):
    """What keeps an assignment from being certified, if anything."""

    doubt: Integers
    """Rows that outbid one another for ever, or the last of which wants a unit that nobody has:
    an assignment as good as this one, or better, would shift them round."""
    envious: Integers
    """All rows that wanted another's unit at some time."""


def judge(
    existing: Floats,
    new: Floats,
    prices: Floats,
    columns: Integers,
    slack: Floats | float = 0.0,
) -> Verdict:
    """Certify ``columns`` as the best assignment, or say which rows are in doubt.

    Parameters
    ----------
    existing, new, prices
        As for :func:`~fedma_flwr.matching.assignment.assign`.
    columns : int array, shape (n,)
        An existing unit's index, or :data:`NEW`; no two rows share an existing unit.
    slack : float or float array, shape (n,) (default: 0)
        Certify for all gains at once of which those of row l differ by at most half of its slack
        from the given ones.

    Returns
    -------
    Verdict
        Without doubt ``columns`` is optimal.

    Examples
    --------
    >>> gains = np.array([[5.0, 4.0], [4.0, 0.0]])
    >>> judge(gains, np.zeros(2), np.array([9.0, 9.0]), np.array([1, 0])).doubt.tolist()
    []
    >>> judge(gains, np.zeros(2), np.array([9.0, 9.0]), np.array([0, 1])).doubt.tolist()
    [1]
    """
    opened = columns == NEW
    count = int(opened.sum())
    if count > len(prices):
        return Verdict(np.flatnonzero(opened), np.flatnonzero(opened))
    # A unit more would cost the ceiling, one less would save the floor.
    floor = prices[count - 1] if count else -np.inf
    ceiling = prices[count] if count < len(prices) else np.inf
    holders = np.flatnonzero(~opened)
    own = existing[holders, columns[holders]]
    # Nobody bids for what they have.
    existing[holders, columns[holders]] = -np.inf
    try:
        market = _Market(existing, new, columns, own, float(floor), slack)
        doubt = market.settle(float(ceiling))
        return Verdict(doubt, np.flatnonzero(market.envious))
    finally:
        existing[holders, columns[holders]] = own


class _Market:
    """Prices of existing and new units while they are raised."""

    def __init__(
        self,
        existing: Floats,
        new: Floats,
        columns: Integers,
        own: Floats,
        floor: float,
        slack: Floats | float,
    ) -> None:
        rows, width = existing.shape
        self._existing, self._new, self._columns = existing, new, columns
        self._opened = columns == NEW
        self._holders = np.flatnonzero(~self._opened)
        self._held = columns[self._holders]
        # What a row has, before its price: the least it can be.
        self._value = new - slack
        self._value[self._holders] += own - new[self._holders]
        self._free = np.ones(width, dtype=bool)
        self._free[self._held] = False
        self._price, self._new_price = np.zeros(width), floor
        self.envious = np.zeros(rows, dtype=bool)
        # Who last outbid a row; itself: nobody.
        self._outbid_by = np.arange(rows)
        # The best that a row could have instead, when it was last asked: as prices only rise, it
        # need not be asked again while what it has is better.
        self._instead = np.full(rows, np.inf)

    def settle(self, ceiling: float) -> Integers:
        """Raise prices until nobody wants another's unit; return who still does, if any."""
        for _ in range(_MAX_RAISES):
            satisfied = self._satisfaction()
            asked = np.flatnonzero(satisfied < self._instead)
            self._instead[asked] = -np.inf
            new_offer, new_bidder = self._new_offer(asked, satisfied)
            offer, bidder = self._offers(asked, satisfied)
            raised = offer > self._price
            unmet = [*bidder[raised & self._free], *([new_bidder] if new_offer > ceiling else [])]
            if unmet:
                return self._chain(np.array(unmet))
            if not raised.any() and new_offer <= self._new_price:
                return np.empty(0, dtype=np.int64)
            self._price = offer
            outbid = self._holders[raised[self._held]]
            self._outbid_by[outbid] = bidder[self._columns[outbid]]
            if new_offer > self._new_price:
                self._new_price = new_offer
                self._outbid_by[self._opened] = new_bidder
            cycle = self._cycle()
            if len(cycle):
                return cycle
        return asked

    def _satisfaction(self) -> Floats:
        paid = np.where(self._opened, self._new_price, 0.0)
        paid[self._holders] = self._price[self._held]
        return self._value - paid

    def _offers(self, rows: Integers, satisfied: Floats) -> tuple[Floats, Integers]:
        """Return the most that some rows would pay for every unit, its price at least, and who."""
        offer, bidder = self._price.copy(), np.full(len(self._price), -1)
        if self._price.any():
            part = self._existing[rows]
            best = np.subtract(part, self._price, out=part).max(1, initial=-np.inf)
        else:
            best = self._existing.max(1, initial=-np.inf)[rows]
        self._instead[rows] = np.maximum(self._instead[rows], best)
        rows = rows[best > satisfied[rows]]
        self.envious[rows] = True
        if len(rows):
            bids = self._existing[rows] - satisfied[rows, None]
            highest = bids.max(0)
            higher = np.flatnonzero(highest > offer)
            bidder[higher] = rows[bids[:, higher].argmax(0)]
            offer[higher] = highest[higher]
        return offer, bidder

    def _new_offer(self, rows: Integers, satisfied: Floats) -> tuple[float, int]:
        """Return the most that some rows would pay for a new unit, and who."""
        holders = rows[~self._opened[rows]]
        if not len(holders):
            return -np.inf, -1
        self._instead[holders] = self._new[holders] - self._new_price
        bids = self._new[holders] - satisfied[holders]
        self.envious[holders[bids > self._new_price]] = True
        best = int(bids.argmax())
        return float(bids[best]), int(holders[best])

    def _chain(self, rows: Integers) -> Integers:
        """Return some rows and who outbid them, who outbid those, and so on."""
        found = np.zeros(len(self._new), dtype=bool)
        while not found[rows].all():
            found[rows] = True
            rows = self._outbid_by[rows]
        return np.flatnonzero(found)

    def _cycle(self) -> Integers:
        """Return the rows that outbid one another in a circle."""
        ahead = self._outbid_by
        for _ in range(int(_MAX_RAISES).bit_length()):
            ahead = ahead[ahead]  # at last 2^k steps back: past every tail
        circling = np.zeros(len(ahead), dtype=bool)
        circling[ahead] = True
        return np.flatnonzero(circling & (self._outbid_by != np.arange(len(ahead))))
