"""The search for the best grouping: a first pass and sweeps, one assignment at a time.

Every visit of a client ends with its best assignment, but few gains are computed exactly for it.
In the first pass all are made in float32, with a bound on the error; in the sweeps most are only
bounded (``bounds.py``). Prices prove an assignment the best for all gains within their bounds
(``certificate.py``); rows for which that fails are looked at more closely, and those that want to
move are assigned anew. Where most want to, exact gains and one solver's call take less.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .assignment import assign, guess, improve, reassign
from .bounds import Bounds
from .certificate import best_elsewhere, judge
from .gain import ScalarGain
from .known import Known
from .model import Model, Rules
from .problem import NEW, Problem
from .products import roughness_pays
from .result import Floats, Integers, Matching, average_members
from .state import GlobalUnits, best_device, centre_of

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
    model : Model
    rules : Rules
    fit : bool
        Estimate the model anew after the first pass and after every sweep.
    """

    def __init__(
        self, units: Sequence[Floats], model: Model, rules: Rules, fit: bool = False
    ) -> None:
        self._widths = [len(array) for array in units]
        self._centre, square = centre_of(units)
        self.state = GlobalUnits(units, self._centre, best_device(), square)
        self._rules, self._fit = rules, fit
        # How many units the last visit opened: the next one's first guess.
        self._opened = 0
        self._contested = 0
        self._bounds: Bounds | None = None
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
        self._gain = self.model.gain(self._centre, self._rules.log_determinant)
        # Stable: ties go by index.
        for client in np.argsort([-width for width in self._widths], kind="stable"):
            self._visit(int(client))
        self._refit()
        rough = self._rough_gain()
        if len(orders) and rough is not None:
            self._bounds = Bounds(self.state, rough, self._worth, self._open_rows())
        done = self._sweep(orders)
        self._bounds = None  # The result takes as much memory.
        return done

    def result(
        self,
        units: Sequence[Floats],
        sweeps: int,
        weights: Floats | None = None,
        posterior: bool = False,
    ) -> Matching:
        """Return the matching; see :class:`BBPMAP` for ``weights`` and ``output="posterior"``."""
        assignments = self.state.assignments()
        popularity = self.state.popularity[self.state.numbering]
        means = self.state.means()
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
        return Matching(assignments, means, popularity, objective, sweeps)

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
        state = self.state
        state.take_out(client)
        columns = self._choose(client)
        self._opened = int((columns == NEW).sum()) if state.width else 0
        return state.put_back(client, columns)

    def _choose(self, client: int) -> Integers:
        """Return the best columns of a client that is taken out."""
        rough = self._rough_gain()
        if self.state.width and rough is not None:
            columns = self._choose_by_bounds(client, rough)
            if columns is not None:
                return columns
            # For this client what certifies is dearer than what it saves.
            self._contested += 1
            self._movable[client][:] = False
        return self._choose_exactly(client)

    def _rough_gain(self) -> ScalarGain | None:
        """Return the gain if bounds on it pay."""
        gain, pays = self._gain, self._contested < _CONTESTED and roughness_pays(self.state)
        return gain if pays and isinstance(gain, ScalarGain) else None

    def _choose_exactly(self, client: int) -> Integers:
        existing, new, _ = self._gain(self.state, client)
        problem = self._problem(existing + self._popularity_gain(), new)
        return assign(problem, self._rules.backend, self._opened)

    def _choose_by_bounds(self, client: int, gain: ScalarGain) -> Integers | None:
        """Return the best columns by bounds on the gains, None where most rows want to move.

        The columns that the client has are kept if that is certified; else the rows that want to
        move are assigned anew. That is enough where whatever the bounds leave open changes
        nothing; rows of which they leave too much open are looked at more closely.
        """
        backend, movable = self._rules.backend, self._movable[client]
        most = int(_MOVABLE * len(movable))
        known, held = self._know(client, gain), self.state.slots[client]
        if not len(held):
            columns = guess(known.problem, backend, self._opened)
            known.elsewhere = best_elsewhere(known.problem.existing, columns)
        else:
            columns = known.columns(held)
            columns = improve(known.problem, columns, np.flatnonzero(movable), backend)
        for _ in range(_ATTEMPTS):
            slack, bidders = known.slack(columns), np.flatnonzero(movable)
            doubt, envious = judge(
                known.problem, columns, slack, bidders, most=most, elsewhere=known.elsewhere
            )
            closed = known.closed(envious)
            if self._bounds is not None and len(closed):
                self._bounds.open(client, closed)
                known.open(closed)
                continue
            movable[envious] = True
            if not len(doubt):
                return self.state.numbers(known.slots, columns)
            if movable.sum() > most:
                return None
            moved = reassign(known.problem, columns, np.flatnonzero(movable), backend)
            if (moved == columns).all():
                units = known.inexact(columns, doubt)
                if not len(units):
                    break
                slots = known.slots[units]
                exact = gain.exactly(self.state, client, doubt, slots).existing
                known.settle(doubt, units, exact + self._worth(self.state.popularity[slots]))
            if known.elsewhere is not None:
                known.elsewhere[moved != columns] = np.inf
            columns = moved
        return self._choose_exactly(client)

    def _know(self, client: int, gain: ScalarGain) -> Known:
        """Return bounds on a client's gains; at its first visit no row is closed."""
        new = gain.new(gain.products(self.state, client))
        if self._bounds is not None:
            most, error, closed, elsewhere = self._bounds.at(client)
            return Known(np.arange(len(error)), self._problem(most, new), error, closed, elsewhere)
        most, _, error = gain.roughly(self.state, client)
        most += self._popularity_gain() + error
        problem, closed = self._problem(most, new), np.zeros(len(new), dtype=bool)
        return Known(self.state.numbering, problem, 2 * error, closed)

    def _open_rows(self) -> list[NDArray[np.bool_]]:
        """Return the rows that want to move or hold a unit alone."""
        state = self.state
        return [
            movable | (state.popularity[slots] == 1)
            for movable, slots in zip(self._movable, state.slots, strict=True)
        ]

    def _problem(self, existing: Floats, new: Floats) -> Problem:
        """Price new units."""
        slots = self._rules.slots(len(new), self.state.width)
        return Problem(existing, new, self._rules.prices(slots, len(self._widths)))

    def _worth(self, popularity: Integers) -> Floats:
        return self._rules.popularity_gain(popularity, len(self._widths))

    def _popularity_gain(self) -> Floats:
        return self._worth(self.state.popularity[self.state.numbering])

    def _replay(self, orders: Integers) -> None:
        """Number the units as further sweeps would, which change nothing else."""
        for client in orders.ravel():
            self.state.renumber(int(client))

    def _refit(self) -> None:
        if self._fit:
            self.model = estimate(self.state, self._centre)
            self._gain = self.model.gain(self._centre, self._rules.log_determinant)


def estimate(state: GlobalUnits, centre: Floats) -> Model:
    """Estimate mean and variances, per dimension, from a grouping (SPAHM's moments).

    Both variances are at least 1e-10, as in the reference code.
    """
    popularity = state.popularity[state.numbering][:, None]
    width, members = len(popularity), int(popularity.sum())
    sums = state.sums[state.index(state.numbering)].cpu().numpy()
    squares = sum(
        (state.rows(client) ** 2).sum(0).cpu().numpy() for client in range(len(state.slots))
    )
    means = sums / popularity
    mean = means.mean(0)
    local = (squares - (sums * means).sum(0)) / max(members - width, 1)
    local = np.maximum(local, 1e-10)
    prior = ((means - mean) ** 2).mean(0) - local * (1 / popularity).sum() / width
    return Model(local, np.maximum(prior, 1e-10), mean + centre)
