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
    slots : int array, shape (L,)
        Of every column.
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
        slots: Integers,
        problem: Problem,
        error: Floats,
        closed: NDArray[np.bool_],
        elsewhere: Floats | None = None,
    ) -> None:
        self.slots, self.problem = slots, problem
        self._error, self._closed = error, closed
        self.elsewhere = elsewhere
        self._exact: NDArray[np.bool_] | None = None

    def columns(self, held: Integers) -> Integers:
        """Return the columns of some slots, NEW for those that nobody has."""
        column = np.full(max(self.slots.max(initial=-1), held.max(initial=-1)) + 1, NEW)
        column[self.slots] = np.where(self._is_unit(), np.arange(len(self.slots)), NEW)
        return column[held]

    def _is_unit(self) -> NDArray[np.bool_]:
        is_unit: NDArray[np.bool_] = self.problem.existing[0] > -np.inf
        return is_unit

    def slack(self, columns: Integers) -> Floats:
        """Return how much less what every row has may be worth, shape (n,)."""
        held = np.flatnonzero((columns != NEW) & ~self._closed)
        slack, units = np.zeros(len(columns)), columns[held]
        slack[held] = self._error[units]
        if self._exact is not None:
            slack[held[self._exact[held, units]]] = 0.0
        return slack

    def closed(self, rows: Integers) -> Integers:
        """Return which of some rows are closed."""
        return rows[self._closed[rows]]

    def open(self, rows: Integers) -> None:
        """Note that some rows are not closed any more; their gains are at hand."""
        self._closed[rows] = False

    def inexact(self, columns: Integers, rows: Integers) -> Integers:
        """Return units that settle what rows in doubt would do with one another's units.

        Units that nobody has are among them. None where all of that is exact already.
        """
        units = self._is_unit()
        units[columns[columns != NEW]] = False
        units[columns[rows[columns[rows] != NEW]]] = True
        chosen = np.flatnonzero(units)
        is_settled = self._exact is not None and self._exact[np.ix_(rows, chosen)].all()
        return chosen[:0] if is_settled else chosen

    def settle(self, rows: Integers, units: Integers, gains: Floats) -> None:
        """Note some exact gains."""
        self.problem.existing[np.ix_(rows, units)] = gains
        if self._exact is None:
            self._exact = np.zeros(self.problem.existing.shape, dtype=bool)
        self._exact[np.ix_(rows, units)] = True
