"""The search for the best grouping: a first pass and sweeps, one assignment at a time.

Every visit of a client ends with its best assignment, but few gains are computed exactly for it.
In the first pass all are made in float32, with a bound on the error; in the sweeps most are only
bounded (``bounds.py``). Prices prove an assignment the best for all gains within their bounds
(``certificate.py``); rows for which that fails are looked at more closely, and those that want to
move are assigned anew. Where most want to, exact gains and one solver's call take less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .assignment import Backend, assign, guess, improve, reassign
from .bounds import Bounds
from .certificate import judge
from .gain import Gain, ScalarGain, VectorGain
from .known import Known
from .problem import NEW, Problem
from .products import roughness_pays
from .result import Floats, Integers
from .state import GlobalUnits, best_device, centre_of

# So often a client's assignment is mended before it is made anew.
_ATTEMPTS = 6
# Where a larger part of a client's rows wants to move, a certificate costs more than it saves.
_MOVABLE = 1 / 4
# So many clients of that kind, and all are taken to be. One is often the second client, which finds
# units that only one has; the others then need not be.
_CONTESTED = 2


@dataclass(frozen=True, eq=False)
class Model:
    """The Gaussian model of the units.

    Parameters
    ----------
    local, prior : float or float64 array, shape (D,)
        The variance of a local unit around its global unit, and of the global units.
    mean : float64 array, shape (D,)
        The mean of the global units.
    """

    local: float | Floats
    prior: float | Floats
    mean: Floats

    def gain(self, centre: Floats, log_determinant: bool) -> Gain:
        """Return the model's gain for rows from which ``centre`` was subtracted."""
        mean = self.mean - centre
        if isinstance(self.local, float) and isinstance(self.prior, float):
            return ScalarGain(self.local, self.prior, mean, log_determinant)
        local, prior = (np.broadcast_to(v, mean.shape) for v in (self.local, self.prior))
        return VectorGain(local.copy(), prior.copy(), mean, log_determinant)

    def posterior(self, sums: Floats, popularity: Integers) -> tuple[Floats, Floats]:
        """Return the numerators g_i, (L, D), and precisions S_i, (L, D), from members' sums."""
        precision = 1 / self.prior + popularity[:, None] / self.local
        return self.mean / self.prior + sums / self.local, np.broadcast_to(precision, sums.shape)


@dataclass(frozen=True)
class Rules:
    """How popularity and new units are priced; see :class:`BBPMAP` for the fields."""

    gamma: float
    log_determinant: bool
    popularity_weight: float
    popularity_cap: int
    soft_width: int | Literal["double"] | None
    max_width: int | None
    backend: Backend
    price: float = 0.0

    def slots(self, rows: int, width: int) -> int:
        """Return K, how many new units are open to a client of ``rows`` units.

        Never fewer than leave room for all of its units: where the reference code has fewer, it
        drops units.
        """
        soft = 2 * rows if self.soft_width == "double" else self.soft_width
        slots = rows if soft is None else min(rows, max(soft - width, 1))
        if self.max_width is not None:
            slots = min(slots, self.max_width - width)
        return max(slots, rows - width)

    def popularity_gain(self, popularity: Integers, clients: int) -> Floats:
        """Return ``popularity_weight * log(c / (J - c))``, c = min(n, cap), shape (L,)."""
        capped = np.minimum(popularity, self.popularity_cap)
        # All clients hold a unit only while nobody is taken out, and then nothing is assigned.
        others = np.maximum(clients - capped, 1)
        gain: Floats = self.popularity_weight * np.log(capped / others)
        return gain

    def prices(self, slots: int, clients: int) -> Floats:
        """Return ``price + 2 log k - 2 log(gamma / J)``, k = 1..K, shape (K,)."""
        offset = self.price - 2 * np.log(self.gamma / clients)
        prices: Floats = offset + 2 * np.log(np.arange(1, slots + 1))
        return prices


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
        known, columns = self._know(client, gain), self.state.columns(client)
        if columns is None:
            columns = guess(known.problem, backend, self._opened)
        else:
            columns = improve(known.problem, columns, np.flatnonzero(movable), backend)
        for _ in range(_ATTEMPTS):
            slack, bidders = known.slack(columns), np.flatnonzero(movable)
            doubt, envious = judge(
                known.problem, columns, slack, bidders, most=most, elsewhere=known.elsewhere
            )
            closed = known.closed(envious)
            if self._bounds is not None and len(closed):
                known.open(closed, self._bounds.open(client, closed))
                continue
            movable[envious] = True
            if not len(doubt):
                return columns
            if movable.sum() > most:
                return None
            moved = reassign(known.problem, columns, np.flatnonzero(movable), backend)
            if (moved == columns).all():
                units = known.inexact(columns, doubt)
                if not len(units):
                    break
                exact = gain.exactly(self.state, client, doubt, units).existing
                known.settle(doubt, units, exact + self._popularity_gain()[units])
            columns = moved
        return self._choose_exactly(client)

    def _know(self, client: int, gain: ScalarGain) -> Known:
        """Return bounds on a client's gains; at its first visit no row is closed."""
        new = gain.new(gain.products(self.state, client))
        if self._bounds is not None:
            most, error, closed, elsewhere = self._bounds.at(client)
            return Known(self._problem(most, new), error, closed, elsewhere)
        most, _, error = gain.roughly(self.state, client)
        most += self._popularity_gain() + error
        return Known(self._problem(most, new), 2 * error, np.zeros(len(new), dtype=bool))

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
    width, members = len(popularity), popularity.sum()
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
