"""The search for the best grouping: a first pass and sweeps, one assignment at a time.

Every visit of a client ends with its best assignment, but few gains are computed exactly for it.
In the first pass all are made in float32, with a bound on the error; in the sweeps most are only
bounded (``gain_bounds.py``). Prices prove an assignment the best for all gains within their bounds
(``certificate.py``); rows for which that fails are looked at more closely, and those that want to
move are assigned anew. Where most want to, exact gains and one solver's call take less.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .arrays import Floats, Integers, average_members
from .assignment import Backend, assign, guess, improve, reassign, solver_of
from .assignment_problem import NEW, Problem
from .certificate import best_elsewhere, judge
from .gain import ScalarGain
from .gain_bounds import GainBounds
from .global_units import GlobalUnits, best_device, centre_of
from .matcher import Matching
from .pricing import Pricing
from .products import roughness_pays
from .rough_problem import RoughProblem
from .unit_model import UnitModel, estimate

_ROWS = 64  # of the result at a time: no second copy of it is ever held
# So often a client's assignment is mended before it is made anew.
_ATTEMPTS = 6
# Where a larger part of a client's rows wants to move, a certificate costs more than it saves.
_MOVABLE = 1 / 4
# So many clients of that kind, and all are taken to be. One is often the second client, which finds
# units that only one has; the others then need not be.
_CONTESTED = 2


class Search:
    """One run of the search.

    Parameters
    ----------
    units : sequence of J float arrays, shapes (L_j, D)
    model : UnitModel
    pricing : Pricing
    backend : {"auto", "scipy", "lapx", "lapsolver"} (default: "auto")
        The assignment solver.
    fit : bool (default: False)
        Estimate the model anew after the first pass and after every sweep.
    effort : float (default: infinity)
        See :class:`Solver`.
    """

    def __init__(
        self,
        units: Sequence[Floats],
        model: UnitModel,
        pricing: Pricing,
        *,
        backend: Backend = "auto",
        fit: bool = False,
        effort: float = np.inf,
    ) -> None:
        self._widths = [len(array) for array in units]
        self._centre, square = centre_of(units)
        self.global_units = GlobalUnits(units, self._centre, best_device(), square)
        self._pricing, self._solver, self._fit = pricing, solver_of(backend, effort), fit
        # How many units the last visit opened: the next one's first guess.
        self._opened = 0
        self._contested = 0
        self._bounds: GainBounds | None = None
        # Which of a client's units once wanted to move: they will again.
        self._movable = [np.zeros(width, dtype=bool) for width in self._widths]
        self.model = model

    def run(self, orders: Integers) -> int:
        """Search; return the number of sweeps done before one of them changed nothing.

        Parameters
        ----------
        orders : int array, shape (sweeps, J)
            The clients' order in every sweep.
        """
        self._gain = self.model.gain(self._centre)
        # Stable: ties go by index.
        for client in np.argsort([-width for width in self._widths], kind="stable"):
            self._visit(int(client))
        self._refit()
        gain = self._rough_gain()
        if len(orders) and gain is not None:
            self._bounds = GainBounds(self.global_units, gain, self._worth, self._likely_to_move())
        done = self._sweep(orders)
        self._bounds = None  # The result takes as much memory.
        return done

    def add(self, units: Floats) -> None:
        """Assign a further client, whose units are then let go.

        Parameters
        ----------
        units : float array, shape (L_j, D)
            Of a client behind those that the search began with, its anchors.
        """
        client = self.global_units.append(units)
        self._movable.append(np.zeros(len(units), dtype=bool))
        self._visit(client)
        self._gain.forget(client)
        self.global_units.let_go(client)
        self._movable[client] = np.zeros(0, dtype=bool)

    def sweep_again(self, orders: Integers) -> int:
        """Sweep over the anchors once more; return the number of sweeps done.

        Parameters
        ----------
        orders : int array, shape (sweeps, anchors)
            Their order in every sweep.
        """
        return self._sweep(orders)

    def result(
        self,
        units: Sequence[Floats],
        sweeps: int,
        weights: Floats | None = None,
        posterior: bool = False,
    ) -> Matching:
        """Return the matching; see :class:`BBPMAP` for ``weights`` and ``output="posterior"``."""
        assignments = self.global_units.assignments()
        popularity = self.global_units.popularity[self.global_units.numbering]
        means = self.global_units.means()
        objective = 0.0
        for start in range(0, len(means), _ROWS):
            rows = slice(start, start + _ROWS)
            counts = popularity[rows]
            numerator, precision = self.model.posterior(means[rows] * counts[:, None], counts)
            if posterior:
                means[rows] = numerator / precision
            objective += float((numerator**2 / precision).sum())
        if weights is not None:
            means = average_members(units, assignments, len(popularity), weights)
        return Matching(assignments, means, popularity, objective, sweeps, self._solver.settled)

    def _sweep(self, orders: Integers) -> int:
        for done, order in enumerate(orders, start=1):
            moved = [self._visit(int(client)) for client in order]
            if not any(moved):
                self._replay(orders[done:])
                return done
            self._refit()
        return len(orders)

    def _visit(self, client: int) -> bool:
        """Take a client's units out and assign them anew; return whether anything changed."""
        global_units = self.global_units
        global_units.take_out(client)
        columns = self._choose(client)
        self._opened = int((columns == NEW).sum()) if global_units.width else 0
        return global_units.put_back(client, columns)

    def _choose(self, client: int) -> Integers:
        """Return the best columns of a client that is taken out."""
        gain = self._rough_gain()
        if self.global_units.width and gain is not None:
            columns = self._choose_by_bounds(client, gain)
            if columns is not None:
                return columns
            # For this client what certifies is dearer than what it saves.
            self._contested += 1
            self._movable[client][:] = False
        return self._choose_exactly(client)

    def _rough_gain(self) -> ScalarGain | None:
        """Return the gain if bounds on it pay."""
        gain, pays = self._gain, self._contested < _CONTESTED and roughness_pays(self.global_units)
        return gain if pays and isinstance(gain, ScalarGain) else None

    def _choose_exactly(self, client: int) -> Integers:
        existing, new, _ = self._gain(self.global_units, client)
        problem = self._problem(existing + self._popularity_gain(), new)
        return assign(problem, self._solver, self._opened)

    def _choose_by_bounds(self, client: int, gain: ScalarGain) -> Integers | None:
        """Return the best columns by bounds on the gains, None where most rows want to move.

        The columns that the client has are kept if that is certified; else the rows that want to
        move are assigned anew. That is enough where what the bounds do not tell changes nothing;
        rows of which they tell too little are looked at more closely.
        """
        movable = self._movable[client]
        most = int(_MOVABLE * len(movable))
        rough = self._rough_problem(client, gain)
        columns = self._first_columns(client, rough)
        for _ in range(_ATTEMPTS):
            slack, bidders = rough.slack(columns), np.flatnonzero(movable)
            doubt, envious = judge(
                rough.problem, columns, slack, bidders, most=most, elsewhere=rough.elsewhere
            )
            bounded = rough.bounded(envious)
            if self._bounds is not None and len(bounded):
                self._bounds.measure(client, bounded)
                rough.note_measured(bounded)
                continue
            movable[envious] = True
            if not len(doubt):
                return self.global_units.numbers(rough.slots, columns)
            if movable.sum() > most:
                return None
            moved = reassign(rough.problem, columns, np.flatnonzero(movable), self._solver)
            if (moved == columns).all():
                units = rough.inexact(columns, doubt)
                if not len(units):
                    break
                self._look_closely(client, gain, rough, doubt, units)
            rough.note_moved(moved != columns)
            columns = moved
        return self._choose_exactly(client)

    def _rough_problem(self, client: int, gain: ScalarGain) -> RoughProblem:
        """Return a client's problem with bounds on its gains."""
        new = gain.new(gain.products(self.global_units, client))
        if self._bounds is not None:
            most, error, is_bounded, elsewhere = self._bounds.at(client)
            problem = self._problem(most, new)
            return RoughProblem(np.arange(len(error)), problem, error, is_bounded, elsewhere)
        most, _, error = gain.roughly(self.global_units, client)
        most += self._popularity_gain() + error
        is_bounded = np.zeros(len(new), dtype=bool)
        problem = self._problem(most, new)
        return RoughProblem(self.global_units.numbering, problem, 2 * error, is_bounded)

    def _first_columns(self, client: int, rough: RoughProblem) -> Integers:
        """Return columns to start from: a guess at the first visit, then those it has, improved."""
        held = self.global_units.slots[client]
        if len(held):
            movable = np.flatnonzero(self._movable[client])
            return improve(rough.problem, rough.columns(held), movable, self._solver)
        columns = guess(rough.problem, self._solver, self._opened)
        rough.elsewhere = best_elsewhere(rough.problem.existing, columns)
        return columns

    def _look_closely(
        self, client: int, gain: ScalarGain, rough: RoughProblem, rows: Integers, units: Integers
    ) -> None:
        """Make the gains of some rows in some units exact."""
        slots = rough.slots[units]
        exact = gain.exactly(self.global_units, client, rows, slots).existing
        rough.note_exact(rows, units, exact + self._worth(self.global_units.popularity[slots]))

    def _likely_to_move(self) -> list[NDArray[np.bool_]]:
        """Return the rows that want to move or hold a unit alone."""
        global_units = self.global_units
        return [
            movable | (global_units.popularity[slots] == 1)
            for movable, slots in zip(self._movable, global_units.slots, strict=True)
        ]

    def _problem(self, existing: Floats, new: Floats) -> Problem:
        """Price new units."""
        slots = self._pricing.slots(len(new), self.global_units.width)
        return Problem(existing, new, self._pricing.prices(slots))

    def _worth(self, popularity: Integers) -> Floats:
        return self._pricing.popularity_gain(popularity)

    def _popularity_gain(self) -> Floats:
        return self._worth(self.global_units.popularity[self.global_units.numbering])

    def _replay(self, orders: Integers) -> None:
        """Number the units as further sweeps would, which change nothing else."""
        for client in orders.ravel():
            self.global_units.renumber(int(client))

    def _refit(self) -> None:
        if self._fit:
            self.model = estimate(self.global_units, self._centre, self.model.log_determinant)
            self._gain = self.model.gain(self._centre)
