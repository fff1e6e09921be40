"""The assignment problem of one visit while its gains are only bounded."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .arrays import Floats, Integers
from .assignment_problem import NEW, Problem


class RoughProblem:
    """A client's assignment problem at a visit, of whose gains more becomes exact by and by.

    Parameters
    ----------
    slots : int array, shape (L,)
        Of every column.
    problem : Problem
        Gains are the most that they can be; those of bounded rows in the units that they have,
        the least.
    error : float array, shape (L,)
        By how much other gains in a unit can be less.
    is_bounded : bool array, shape (n,)
        Rows that are not measured, see ``gain_bounds.py``.
    elsewhere : float array, shape (n,), or None
        See :func:`judge`.
    """

    def __init__(
        self,
        slots: Integers,
        problem: Problem,
        error: Floats,
        is_bounded: NDArray[np.bool_],
        elsewhere: Floats | None = None,
    ) -> None:
        self.slots, self.problem = slots, problem
        self._error, self._is_bounded = error, is_bounded
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
        held = np.flatnonzero((columns != NEW) & ~self._is_bounded)
        slack, units = np.zeros(len(columns)), columns[held]
        slack[held] = self._error[units]
        if self._exact is not None:
            slack[held[self._exact[held, units]]] = 0.0
        return slack

    def bounded(self, rows: Integers) -> Integers:
        """Return which of some rows are bounded."""
        return rows[self._is_bounded[rows]]

    def note_measured(self, rows: Integers) -> None:
        """Note that some rows are bounded no more; their gains are at hand."""
        self._is_bounded[rows] = False

    def inexact(self, columns: Integers, rows: Integers) -> Integers:
        """Return units that tell what rows in doubt would do with one another's units.

        Units that nobody has are among them. None where all of that is exact already.
        """
        units = self._is_unit()
        units[columns[columns != NEW]] = False
        units[columns[rows[columns[rows] != NEW]]] = True
        chosen = np.flatnonzero(units)
        is_exact = self._exact is not None and self._exact[np.ix_(rows, chosen)].all()
        return chosen[:0] if is_exact else chosen

    def note_exact(self, rows: Integers, units: Integers, gains: Floats) -> None:
        """Note some exact gains."""
        self.problem.existing[np.ix_(rows, units)] = gains
        if self._exact is None:
            self._exact = np.zeros(self.problem.existing.shape, dtype=bool)
        self._exact[np.ix_(rows, units)] = True

    def note_moved(self, rows: NDArray[np.bool_]) -> None:
        """Note which rows have moved: what they gain elsewhere is not what it was."""
        if self.elsewhere is not None:
            self.elsewhere[rows] = np.inf
