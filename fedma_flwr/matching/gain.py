"""What a unit gains in a global unit: the change of the posterior when it joins.

All gains here are up to a constant of the row, which no assignment feels. With precisions
``s = 1 / local``, ``s0 = 1 / prior`` and a global unit's posterior mean ``m_i`` and precision
``S_i = s0 + n_i s``,

    |s w + g_i|^2 / (s + S_i) - |g_i|^2 / S_i  =  s |w|^2  -  s S_i / (s + S_i) |w - m_i|^2,

so a unit looks for the global unit whose mean is nearest, and a shift of all rows and of the
prior mean changes nothing.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import torch

from .products import Products, WithUnits
from .result import Floats, Integers
from .state import GlobalUnits


class Gains(NamedTuple):
    """Gains of a client's n rows in the L existing units and in a new one."""

    existing: Floats  # (n, L)
    new: Floats  # (n,)
    error: float = 0.0  # no gain in an existing unit is farther from its value in float64


class Gain(Protocol):
    """The Gaussian part of the gain; popularity's part is the search's."""

    def __call__(self, state: GlobalUnits, client: int, exact: bool = False) -> Gains:
        """Return a client's gains while it is taken out of ``state``.

        Without ``exact`` they may have an error, which is then told.
        """
        ...

    def exactly(self, state: GlobalUnits, client: int, rows: Integers, units: Integers) -> Floats:
        """Return some rows' gains in some existing units without error, (rows, units)."""
        ...


class ScalarGain:
    """The gain with one local and one prior variance for all dimensions.

    One matrix product an update gives it, in float32 with a bound on its error unless it has to
    be exact, and that product is kept for the client's next visit.

    Parameters
    ----------
    local, prior : float
        The local and the prior variance.
    mean : float64 array, shape (D,)
        The prior mean, centred as the state's rows.
    log_determinant : bool
        Add ``sum_d log d(n) - log d(n+1)``, ``d(n) = n prior + local``.
    """

    def __init__(self, local: float, prior: float, mean: Floats, log_determinant: bool) -> None:
        self._s, self._s0 = 1 / local, 1 / prior
        self._mean = mean
        self._log_determinant = log_determinant
        self._products: dict[int, Products] = {}

    def __call__(self, state: GlobalUnits, client: int, exact: bool = False) -> Gains:
        """Return a client's gains while it is taken out of ``state``."""
        if client not in self._products:
            self._products[client] = Products(state, client, self._mean)
        products = self._products[client]
        cross = products.at(state.numbering, exact)
        rows = np.arange(len(products.square))
        popularity = state.popularity[state.numbering]
        existing, factor = self._existing(products, cross, rows, popularity)
        s, s0 = self._s, self._s0
        distance = products.square - 2 * products.prior + float(self._mean @ self._mean)
        new = self._logs(np.zeros(1)) - s * s0 / (s + s0) * distance
        return Gains(existing, new, float((factor * cross.error).max(initial=0.0)))

    def exactly(self, state: GlobalUnits, client: int, rows: Integers, units: Integers) -> Floats:
        """Return some rows' gains in some existing units without error, (rows, units)."""
        products, slots = self._products[client], state.numbering[units]
        cross = products.exactly(slots, rows)
        return self._existing(products, cross, rows, state.popularity[slots])[0]

    def _existing(
        self, products: Products, cross: WithUnits, rows: Integers, popularity: Integers
    ) -> tuple[Floats, Floats]:
        """Return the gains and what every column of the products is multiplied by in them."""
        s, s0, mean2 = self._s, self._s0, float(self._mean @ self._mean)
        S = s0 + popularity * s  # (L,)
        weight = s * S / (s + S)
        m2 = (s0**2 * mean2 + 2 * s0 * s * cross.prior + s**2 * cross.square) / S**2
        of_row = np.stack([products.square[rows], products.prior[rows], np.ones(len(rows))], 1)
        of_unit = [-weight, 2 * weight * s0 / S, self._logs(popularity) - weight * m2]
        factor = 2 * weight * s / S
        existing = cross.cross * factor
        # Torch adds the three rank-one terms in place, in its own threads.
        torch.from_numpy(existing).addmm_(
            torch.from_numpy(of_row), torch.from_numpy(np.stack(of_unit))
        )
        return existing, factor

    def _logs(self, popularity: Integers | Floats) -> Floats:
        if not self._log_determinant:
            return np.zeros(len(popularity))
        ratio = self._s / (self._s0 + popularity * self._s)  # d(n+1) / d(n) - 1
        logs: Floats = -len(self._mean) * np.log1p(ratio)
        return logs


class VectorGain:
    """The gain with a local and a prior variance for every dimension.

    Parameters
    ----------
    local, prior, mean : float64 arrays, shape (D,)
    log_determinant : bool
        As for :class:`ScalarGain`.
    """

    def __init__(self, local: Floats, prior: Floats, mean: Floats, log_determinant: bool) -> None:
        self._s, self._s0, self._mean = 1 / local, 1 / prior, mean
        self._log_determinant = log_determinant

    def __call__(self, state: GlobalUnits, client: int, exact: bool = False) -> Gains:
        """Return a client's gains while it is taken out of ``state``; always exact."""
        device = state.sums.device
        s, s0, mean = (torch.from_numpy(v).to(device) for v in (self._s, self._s0, self._mean))
        rows = state.rows(client)
        others = state.sums_of_others(client, state.numbering).block()
        popularity = state.popularity[state.numbering]
        counts, inverse = np.unique(popularity, return_inverse=True)
        S = s0 + torch.from_numpy(popularity).to(device)[:, None] * s  # (L, D)
        weight = s * S / (s + S)
        means = (mean * s0 + s * others) / S
        few = s0 + torch.from_numpy(counts).to(device)[:, None] * s  # (counts, D)
        quadratic = (rows**2 @ (s * few / (s + few)).T).cpu().numpy()
        existing = 2 * rows @ (weight * means).T - (weight * means**2).sum(1)
        distance = (rows - mean) ** 2 @ (s * s0 / (s + s0))
        return Gains(
            existing.cpu().numpy() - quadratic[:, inverse] + self._logs(popularity),
            self._logs(np.zeros(1)) - distance.cpu().numpy(),
        )

    def exactly(self, state: GlobalUnits, client: int, rows: Integers, units: Integers) -> Floats:
        """Return some rows' gains in some existing units, which have no error as it is."""
        return self(state, client).existing[np.ix_(rows, units)]

    def _logs(self, popularity: Integers | Floats) -> Floats:
        if not self._log_determinant:
            return np.zeros(len(popularity))
        logs: Floats = -np.log1p(self._s / (self._s0 + popularity[:, None] * self._s)).sum(1)
        return logs
