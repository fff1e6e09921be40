"""What is known of a client's gains at one visit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .problem import NEW, Problem
from .result import Floats, Integers


class Known:
    """What is known of a client's gains at a visit, and what has to be.

    Parameters
    ----------
    problem : Problem
        Gains are the most that they can be; those of closed rows in the units that they have,
        the least.
    error : float array, shape (L,)
        By how much other gains in a unit can be less.
    closed : bool array, shape (n,)
    elsewhere : float array, shape (n,), or None
        See :func:`judge`.
    """

    def __init__(
        self,
        problem: Problem,
        error: Floats,
        closed: NDArray[np.bool_],
        elsewhere: Floats | None = None,
    ) -> None:
        self.problem, self._error, self._closed = problem, error, closed
        self.elsewhere = elsewhere
        self._exact = np.zeros_like(problem.existing, dtype=bool)

    def slack(self, columns: Integers) -> Floats:
        """Return how much less what every row has may be worth, shape (n,)."""
        held = np.flatnonzero((columns != NEW) & ~self._closed)
        slack, units = np.zeros(len(columns)), columns[held]
        slack[held] = np.where(self._exact[held, units], 0.0, self._error[units])
        return slack

    def closed(self, rows: Integers) -> Integers:
        """Return which of some rows are closed."""
        return rows[self._closed[rows]]

    def open(self, rows: Integers, most: Floats) -> None:
        """Note the gains of rows that are not closed any more."""
        self.problem.existing[rows] = most
        self._closed[rows] = False
        if self.elsewhere is not None:
            self.elsewhere[rows] = np.inf

    def inexact(self, columns: Integers, rows: Integers) -> Integers:
        """Return units that settle what rows in doubt would do with one another's units.

        Units that nobody has are among them. None where all of that is exact already.
        """
        units = np.ones(len(self._error), dtype=bool)
        units[columns[columns != NEW]] = False
        units[columns[rows[columns[rows] != NEW]]] = True
        chosen = np.flatnonzero(units)
        return chosen[:0] if self._exact[np.ix_(rows, chosen)].all() else chosen

    def settle(self, rows: Integers, units: Integers, gains: Floats) -> None:
        """Note some exact gains."""
        self.problem.existing[np.ix_(rows, units)] = gains
        self._exact[np.ix_(rows, units)] = True
