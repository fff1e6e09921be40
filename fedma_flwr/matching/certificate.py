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
from numpy.typing import NDArray

from .arrays import Floats, Integers
from .assignment_problem import NEW, Problem

# A path of so many rows, each wanting the next one's unit, is not followed further: doubt is
# always a safe answer.
_MAX_RAISES = 24
_LOOKS = 4  # so often someone looks whether they bid in a circle, which takes time
_ROWS = 64
# So many units are looked at more closely than the others.
_CHEAPEST = 32


class Verdict(NamedTuple):
    """What keeps an assignment from being certified, if anything."""

    doubt: Integers
    """Rows that outbid one another for ever, or the last of which wants a unit that nobody has:
    an assignment as good as this one, or better, would shift them round."""
    envious: Integers
    """All rows that wanted another's unit at some time."""


def judge(
    problem: Problem,
    columns: Integers,
    slack: Floats | float = 0.0,
    bidders: Integers | None = None,
    *,
    most: int | None = None,
    elsewhere: Floats | None = None,
) -> Verdict:
    """Certify ``columns`` as the best assignment, or say which rows are in doubt.

    Parameters
    ----------
    problem : Problem
        Its gains are changed for the time being.
    columns : int array, shape (n,)
        An existing unit's index, or :data:`NEW`; no two rows share an existing unit.
    slack : float or float array, shape (n,) (default: 0)
        What row l has may be worth less than its gain says by so much: with gains at the upper
        end of their errors, twice the error.
    bidders : int array or None
        Rows that are likely to be envious: a hint that saves time.
    most : int or None
        Give up, all of them in doubt, where more rows than that are envious.
    elsewhere : float array, shape (n,), or None
        At least what a row gains in any existing unit that it does not have: a hint that saves
        time.

    Returns
    -------
    Verdict
        Without doubt ``columns`` is optimal.

    Examples
    --------
    >>> gains = np.array([[5.0, 4.0], [4.0, 0.0]])
    >>> problem = Problem(gains, new=np.zeros(2), prices=np.array([9.0, 9.0]))
    >>> judge(problem, np.array([1, 0])).doubt.tolist()
    []
    >>> judge(problem, np.array([0, 1])).doubt.tolist()
    [0, 1]
    """
    existing, prices = problem.existing, problem.prices
    opened = columns == NEW
    count = int(opened.sum())
    if count > len(prices):
        return Verdict(np.flatnonzero(opened), np.flatnonzero(opened))
    # A unit more would cost the ceiling, one less would save the floor.
    ceiling = prices[count] if count < len(prices) else np.inf
    floor = prices[count - 1] if count else ceiling
    holders = np.flatnonzero(~opened)
    own = existing[holders, columns[holders]]
    # Nobody bids for what they have.
    existing[holders, columns[holders]] = -np.inf
    try:
        market = _Market(problem, columns, own, slack, (float(floor), float(ceiling)))
        market.elsewhere = elsewhere
        if bidders is not None:
            market.envious[bidders] = True
        doubt = market.clear(len(columns) if most is None else most)
        return Verdict(doubt, np.flatnonzero(market.envious))
    finally:
        existing[holders, columns[holders]] = own


def best_elsewhere(existing: Floats, columns: Integers) -> Floats:
    """Return the most that rows gain in an existing unit that they do not have, shape (n,)."""
    holders = np.flatnonzero(columns != NEW)
    own = existing[holders, columns[holders]]
    existing[holders, columns[holders]] = -np.inf
    best: Floats = existing.max(1)
    existing[holders, columns[holders]] = own
    return best


class _Market:
    """Prices of existing and new units while they are raised.

    Only rows that once wanted another's unit bid. Between them the prices of what they have, and
    of free units, settle first; then the others are asked whether they still like theirs at the
    price that the bidders would pay.
    """

    def __init__(
        self,
        problem: Problem,
        columns: Integers,
        own: Floats,
        slack: Floats | float,
        new_price: tuple[float, float],
    ) -> None:
        existing, new = problem.existing, problem.new
        rows, width = existing.shape
        self._existing, self._new, self._columns = existing, new, columns
        self._opened = columns == NEW
        # What a row has, before its price: the least it can be.
        self._value = new - slack
        holders = np.flatnonzero(~self._opened)
        self._value[holders] += own - new[holders]
        self._holder = np.full(width, -1)  # -1: a free unit
        self._holder[columns[holders]] = holders
        self._price = np.zeros(width + 1)  # the last one: of a new unit
        self._price[NEW], self._ceiling = new_price
        self.envious = np.zeros(rows, dtype=bool)
        # Who last outbid a row; itself: nobody.
        self._outbid_by = np.arange(rows)
        self._raise_new()
        # The best that a row could have instead, when it was last asked, or more: as prices only
        # rise, it need not be asked again while what it has is better.
        self._instead = np.full(rows, np.inf)
        self.elsewhere: Floats | None = None

    def _raise_new(self) -> None:
        """Raise a new unit's price to what one row at least would pay, whatever others cost.

        All rows may want a new one at the floor, and but for this all would be bidders.
        """
        offers = np.where(self._opened, -np.inf, self._new - self._value)
        bidder = int(offers.argmax())
        if offers[bidder] > self._price[NEW]:
            self._price[NEW] = min(offers[bidder], self._ceiling)
            self._outbid_by[self._opened] = bidder
            self.envious[bidder] = True

    def clear(self, most: int) -> Integers:
        """Raise prices until nobody wants another's unit; return who still does, if any."""
        while True:
            bidders = np.flatnonzero(self.envious)
            if len(bidders) > most:
                return bidders
            if len(bidders):
                doubt = self._clear_among(bidders)
                if len(doubt):
                    return doubt
                self._raise_others(bidders)
            satisfied = self._value - self._price[self._columns]
            asked = np.flatnonzero((satisfied < self._instead) & ~self.envious)
            if not self._ask(asked, satisfied[asked]).any():
                return np.empty(0, dtype=np.int64)

    def _ask(self, rows: Integers, satisfied: Floats) -> NDArray[np.bool_]:
        """Note what rows could have instead; return which of them prefer it."""
        new = np.where(self._opened[rows], -np.inf, self._new[rows] - self._price[NEW])
        instead = np.maximum(new, self._bound_existing(rows))
        unsure = np.flatnonzero(instead > satisfied)
        instead[unsure] = np.maximum(new[unsure], self._best_existing(rows[unsure]))
        self._instead[rows] = instead
        envious: NDArray[np.bool_] = instead > satisfied
        self.envious[rows[envious]] = True
        return envious

    def _bound_existing(self, rows: Integers) -> Floats:
        """Return at least the most that some rows could have of existing units."""
        if self.elsewhere is None or len(self._holder) <= _CHEAPEST:
            return np.full(len(rows), np.inf)
        # All but the cheapest units, which are looked at, cost this or more.
        price = self._price[:NEW]
        cost = np.partition(price, _CHEAPEST)[_CHEAPEST]
        cheap = np.flatnonzero(price < cost)
        worth = self._existing[rows[:, None], cheap] - price[cheap]
        bound: Floats = np.maximum(self.elsewhere[rows] - cost, worth.max(1, initial=-np.inf))
        return bound

    def _best_existing(self, rows: Integers) -> Floats:
        """Return the most that some rows could have of existing units, at their prices."""
        best = np.full(len(rows), -np.inf)
        if not len(self._holder):
            return best
        # A piece stays in the cache.
        worth = np.empty((min(_ROWS, len(rows)), len(self._holder)))
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS]
            piece = worth[: len(part)]
            np.subtract(self._existing[part], self._price[:NEW], out=piece)
            piece.max(1, out=best[start : start + _ROWS])
        return best

    def _clear_among(self, rows: Integers) -> Integers:
        """Settle the prices of what some rows have, of free units and of new ones.

        Returns
        -------
        int array
            Rows in doubt, see :class:`Verdict`.
        """
        opened, columns = self._opened[rows], self._columns[rows]
        free = np.flatnonzero(self._holder < 0)
        units = np.concatenate([columns[~opened], free, [NEW]])
        gains = np.empty((len(rows), len(units)))
        gains[:, :-1] = self._existing[rows[:, None], units[:-1]]
        gains[:, -1] = np.where(opened, -np.inf, self._new[rows])
        # Where in ``units`` a row's own is, and beyond which price nobody would be outbid.
        own = np.where(opened, len(units) - 1, np.cumsum(~opened) - 1)
        limit = np.repeat([np.inf, 0.0, self._ceiling], [len(units) - 1 - len(free), len(free), 1])
        values, price, places = self._value[rows], self._price[units], np.arange(len(units))
        outbid_by = np.searchsorted(rows, self._outbid_by[rows])
        for turn in range(_MAX_RAISES):
            bids = gains - (values - price[own])[:, None]
            best = bids.argmax(0)
            offers = bids[best, places]
            raised = offers > price
            if not raised.any():
                self._price[units], self._outbid_by[rows] = price, rows[outbid_by]
                return rows[:0]
            unmet = raised & (offers > limit)
            if unmet.any():
                return rows[_chain(outbid_by, best[unmet])]
            price = np.where(raised, offers, price)
            outbid_by = np.where(raised[own], best[own], outbid_by)
            circle = _circle(outbid_by) if turn % _LOOKS == _LOOKS - 1 else rows[:0]
            if len(circle):
                return rows[circle]
        return rows

    def _raise_others(self, rows: Integers) -> None:
        """Raise the prices of everyone else's units to what some rows would pay."""
        satisfied = self._value[rows] - self._price[self._columns[rows]]
        bids = self._existing[rows] - satisfied[:, None]
        best = bids.argmax(0)
        offers = bids[best, np.arange(bids.shape[1])]
        raised = np.flatnonzero(offers > self._price[:NEW])
        self._price[raised] = offers[raised]
        self._outbid_by[self._holder[raised]] = rows[best[raised]]


def _chain(outbid_by: Integers, rows: Integers) -> Integers:
    """Return some rows and who outbid them, who outbid those, and so on."""
    found = np.zeros(len(outbid_by), dtype=bool)
    while not found[rows].all():
        found[rows] = True
        rows = outbid_by[rows]
    return np.flatnonzero(found)


def _circle(outbid_by: Integers) -> Integers:
    """Return the rows that outbid one another in a circle."""
    ahead = outbid_by
    for _ in range(len(ahead).bit_length()):
        ahead = ahead[ahead]  # at last 2^k steps back: past every tail
    circling = np.zeros(len(ahead), dtype=bool)
    circling[ahead] = True
    circling &= outbid_by != np.arange(len(ahead))
    circle: Integers = circling.nonzero()[0]
    return circle
