"""Assignment problems in which many rows want the same units: bounded work, whatever units come.

A solver adds one row after the other, and looks at as many rows as it has to move to make room.
Where every row likes another unit best, it looks at each once. Where all like the same units, it
looks at all of them, time and again: n rows take n times as long. Units with
counterparts are not like that, but a hostile client can send such rows. Three
things bound the work, none of them by the clock.

- Rows that have their favourite are added first. Only the *surplus*, rows whose favourite is
  another's, can then move anyone.
- Where the surplus is large, units are given prices first, at which as many rows want a unit as it
  has room for: Sinkhorn's iteration (Cuturi, "Sinkhorn distances", NIPS 2013). Prices change no
  assignment's rank, but the solver then finds little left to do.
- Where rows are nevertheless denied many units that they would rather have, which is what the
  solver's time goes with, later problems of that kind are solved piece by piece. How far that may
  be from the best is known: prices bound it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from .arrays import Floats, Integers

#: Looks that a row may take by the first rule alone; problems with fewer rows take none.
SURPLUS = 192
_ORDERED = 64  # problems with fewer rows take no time, whatever their order
_STAGES = (0.1, 0.01, 0.001)  # how soft demand is, as a part of the usual cost
_ITERATIONS = 12
_PIECE = 64  # rows that are assigned at a time where the matcher settles for less
_LEAST = 1e-300

Solve = Callable[[Floats], Integers]


class Solver:
    """Solves assignment problems, and keeps account of the work.

    Parameters
    ----------
    solve : function of float64 array, shape (n, m), n <= m
        Returns the column of every row at the least total cost.
    effort : float (default: infinity)
        How many units that it would rather have a row may be denied, on average over all problems
        with a large surplus, before problems are solved piece by piece.

    Attributes
    ----------
    settled : int
        Problems that were solved piece by piece.
    gap : float
        What their solutions cost at most more than the best, in all.
    """

    def __init__(self, solve: Solve, effort: float = np.inf) -> None:
        self._solve, self._effort = solve, effort
        self._denied = self._size = 0.0
        self.settled, self.gap = 0, 0.0

    def __call__(self, cost: Floats, outside: float = np.inf) -> Integers:
        """Return the column of every row at the least total cost, or at little more.

        Parameters
        ----------
        cost : float64 array, shape (n, m), n <= m
        outside : float (default: infinity)
            Rows without a smaller cost than this want no column of their own.
        """
        if len(cost) < _ORDERED:
            return self._solve(cost)
        likes = cost.argmin(1)
        wants = cost[np.arange(len(cost)), likes] < outside
        first = np.zeros(len(cost), dtype=bool)
        first[np.flatnonzero(wants)[np.unique(likes[wants], return_index=True)[1]]] = True
        surplus = wants & ~first
        if surplus.sum() <= SURPLUS:
            return self._in_order(cost, np.argsort(2 * surplus + ~wants, kind="stable"))
        prices = prices_of(cost)
        if not np.isfinite(prices).all():
            return self._solve(cost)
        return self._at_prices(cost, prices)

    def _in_order(self, cost: Floats, order: Integers) -> Integers:
        if (order[:-1] < order[1:]).all():
            return self._solve(cost)
        columns = np.empty(len(cost), dtype=np.int64)
        columns[order] = self._solve(cost[order])
        return columns

    def _at_prices(self, cost: Floats, prices: Floats) -> Integers:
        rows, width = cost.shape
        reduced = cost + prices
        least = np.partition(reduced, 1, axis=1)[:, :2] if width > 1 else np.hstack([reduced] * 2)
        order = np.argsort(least[:, 0] - least[:, 1], kind="stable")
        if self._denied > self._effort * self._size:
            columns = self._in_pieces(reduced, order)
            best = least[:, 0].sum() - prices.sum() + (width - rows) * prices.min()
            self.settled += 1
            self.gap += max(float(cost[np.arange(rows), columns].sum() - best), 0.0)
            denied = 0.0
        else:
            # Rows that want nothing leave the other units free, at their prices.
            whole = np.vstack([reduced[order], np.broadcast_to(prices, (width - rows, width))])
            columns = np.empty(rows, dtype=np.int64)
            columns[order] = self._solve(whole)[:rows]
            denied = _denied(reduced, columns)
        self._size += cost.size
        self._denied += denied * cost.size
        return columns

    def _in_pieces(self, reduced: Floats, order: Integers) -> Integers:
        """Assign a few rows after the other, each to what is left."""
        free = np.ones(reduced.shape[1], dtype=bool)
        columns = np.empty(len(reduced), dtype=np.int64)
        for start in range(0, len(order), _PIECE):
            rows, left = order[start : start + _PIECE], np.flatnonzero(free)
            columns[rows] = left[self._solve(reduced[np.ix_(rows, left)])]
            free[columns[rows]] = False
        return columns


def prices_of(cost: Floats) -> Floats:
    """Return prices of the columns at which about one row wants each.

    Parameters
    ----------
    cost : float64 array, shape (n, m), n <= m
        ``m - n`` further rows cost nothing anywhere.

    Returns
    -------
    float64 array, shape (m,)
        To be added to every row's costs.
    """
    costs = torch.from_numpy(cost)
    rows, width = costs.shape
    prices = costs.mean() - costs.mean(0)
    usual = None
    for part in _STAGES:
        dear = costs + prices
        least = dear.amin(1)
        dear -= least[:, None]
        usual = usual or float(dear.mean(1).median())
        soft = max(usual * part, _LEAST)
        demand = dear.div_(-soft).exp_()
        idle = torch.exp((prices.min() - prices) / soft)
        scale = torch.ones(width, dtype=torch.float64)
        for _ in range(_ITERATIONS):
            wanted = (1 / (demand @ scale).clamp_(min=_LEAST)) @ demand
            wanted += (width - rows) / (idle @ scale).clamp_(min=_LEAST) * idle
            scale = 1 / wanted.clamp_(min=_LEAST)
        prices -= soft * scale.log()
        if width > rows:  # so many units stay free, and those are the cheapest
            prices -= prices.kthvalue(width - rows).values
            prices.clamp_(min=0.0)
    found: Floats = prices.numpy()
    return found


def _denied(cost: Floats, columns: Integers) -> float:
    """Return how many of the others' columns a row would rather have, on average."""
    chosen = cost[:, columns]
    better = chosen < chosen.diagonal()[:, None]
    return float(better.sum() / len(cost))
