"""The search for the best grouping: a first pass and sweeps, one assignment at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from .assignment import Backend, assign, reassign
from .certificate import judge
from .gain import Gain, Gains, ScalarGain, VectorGain
from .problem import NEW, Problem
from .result import Floats, Integers
from .state import GlobalUnits, centre_of

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
        gain: Floats = self.popularity_weight * np.log(capped / (clients - capped))
        return gain

    def prices(self, slots: int, clients: int) -> Floats:
        """Return ``price + 2 log k - 2 log(gamma / J)``, k = 1..K, shape (K,)."""
        offset = self.price - 2 * np.log(self.gamma / clients)
        prices: Floats = offset + 2 * np.log(np.arange(1, slots + 1))
        return prices


class Doubtful:
    """Which gains in existing units are exact; the others are at the upper end of their error.

    Parameters
    ----------
    gains : Gains
    """

    def __init__(self, gains: Gains) -> None:
        self._error = gains.error
        self._exact = np.zeros_like(gains.existing, dtype=bool)

    def slack(self, columns: Integers) -> Floats:
        """Return how much less what every row has may be worth, shape (n,)."""
        held = np.flatnonzero(columns != NEW)
        slack = np.zeros(len(columns))
        slack[held] = np.where(self._exact[held, columns[held]], 0.0, 2 * self._error)
        return slack

    def of(self, columns: Integers, rows: Integers) -> tuple[Integers, Integers]:
        """Return rows and units that settle what rows in doubt would do with one another's units.

        Units that nobody has are among them. Where all of that is exact already: everything.
        """
        units = np.ones(self._exact.shape[1], dtype=bool)
        units[columns[columns != NEW]] = False
        units[columns[rows[columns[rows] != NEW]]] = True
        chosen = np.flatnonzero(units)
        if self._exact[np.ix_(rows, chosen)].all():
            return np.arange(len(self._exact)), np.arange(len(units))
        return rows, chosen

    def settle(self, rows: Integers, units: Integers) -> None:
        """Note that some gains are exact now."""
        self._exact[np.ix_(rows, units)] = True


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
        self._centre = centre_of(units)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.state = GlobalUnits(units, self._centre, device)
        self._rules, self._fit = rules, fit
        # How many units the last visit opened: the next one's first guess.
        self._opened = 0
        self._contested = 0
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
        gains = self._gain(self.state, client, self._contested >= _CONTESTED)
        columns = None
        if gains.error:
            columns = self._choose_among(gains, client)
            if columns is None:
                # For this client what certifies is dearer than what it saves.
                self._contested += 1
                gains = self._gain(self.state, client, exact=True)
        if columns is None:
            columns = assign(self._problem(gains), self._rules.backend, self._opened)
        return columns

    def _choose_among(self, gains: Gains, client: int) -> Integers | None:
        """Return the best columns by gains with an error, None where most rows want to move.

        The columns that the client has are kept if that is certified; else the rows that want to
        move are assigned anew. That is enough where whatever the error hides changes nothing;
        rows in doubt are computed again without it.
        """
        problem, backend = self._problem(gains), self._rules.backend
        columns = self.state.columns(client)
        if columns is None:
            columns = assign(problem, backend, self._opened)
        doubtful, movable = Doubtful(gains), self._movable[client]
        most = int(_MOVABLE * len(columns))
        for _ in range(_ATTEMPTS):
            bidders = np.flatnonzero(movable)
            verdict = judge(problem, columns, doubtful.slack(columns), bidders, most)
            movable[verdict.envious] = True
            if not len(verdict.doubt):
                return columns
            if movable.sum() > most:
                return None
            moved = reassign(problem, columns, np.flatnonzero(movable), backend)
            if (moved == columns).all():
                rows, units = doubtful.of(columns, verdict.doubt)
                self._refine(client, gains, rows, units)
                doubtful.settle(rows, units)
            columns = moved
        self._refine(client, gains, np.arange(len(gains.new)), np.arange(self.state.width))
        return assign(problem, backend, self._opened)

    def _refine(self, client: int, gains: Gains, rows: Integers, units: Integers) -> None:
        """Compute some gains again, without error."""
        exact = self._gain.exactly(self.state, client, rows, units)
        gains.existing[np.ix_(rows, units)] = exact + self._popularity_gain()[units]

    def _problem(self, gains: Gains) -> Problem:
        """Add popularity's part and the error to the gains, in place; price new units."""
        np.add(gains.existing, self._popularity_gain() + gains.error, out=gains.existing)
        slots = self._rules.slots(len(gains.new), self.state.width)
        prices = self._rules.prices(slots, len(self._widths))
        return Problem(gains.existing, gains.new, prices)

    def _popularity_gain(self) -> Floats:
        popularity = self.state.popularity[self.state.numbering]
        return self._rules.popularity_gain(popularity, len(self._widths))

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
    sums = state.sums[torch.from_numpy(state.numbering).to(state.sums.device)].cpu().numpy()
    squares = sum(
        (state.rows(client) ** 2).sum(0).cpu().numpy() for client in range(len(state.slots))
    )
    means = sums / popularity
    mean = means.mean(0)
    local = (squares - (sums * means).sum(0)) / max(members - width, 1)
    local = np.maximum(local, 1e-10)
    prior = ((means - mean) ** 2).mean(0) - local * (1 / popularity).sum() / width
    return Model(local, np.maximum(prior, 1e-10), mean + centre)
