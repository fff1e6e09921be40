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

from .arrays import Floats, Integers
from .global_units import GlobalUnits
from .products import Products, WithUnits
from .single_precision import SingleSums
from .sums_of_others import SumsOfOthers


class Gains(NamedTuple):
    """Gains of some of a client's rows in some units, and of all n in a new one."""

    existing: Floats  # (rows, units)
    new: Floats  # (n,)
    error: Floats  # no gain in a unit is farther from its value in float64, (units,)


class Gain(Protocol):
    """The Gaussian part of the gain; popularity's part is the search's."""

    def __call__(self, global_units: GlobalUnits, client: int) -> Gains:
        """Return all of a client's gains, without error, while it is taken out."""
        ...

    def forget(self, client: int) -> None:
        """Keep nothing of a client, which will not be visited again."""
        ...


class ScalarGain:
    """The gain with one local and one prior variance for all dimensions.

    One matrix product an update gives it, which is kept for the client's next visit.

    Parameters
    ----------
    local, prior : float
        The local and the prior variance.
    mean : float64 array, shape (D,)
        The prior mean, centred as the rows are.
    log_determinant : bool
        Add ``sum_d log d(n) - log d(n+1)``, ``d(n) = n prior + local``.
    """

    def __init__(self, local: float, prior: float, mean: Floats, log_determinant: bool) -> None:
        self.s, self.s0 = 1 / local, 1 / prior
        self.mean, self.mean2 = mean, float(mean @ mean)
        self._log_determinant = log_determinant
        self._products: dict[int, Products] = {}
        self.room = SingleSums(len(mean))

    def products(self, global_units: GlobalUnits, client: int) -> Products:
        """Return a client's products, and what of them is kept from visit to visit."""
        if client not in self._products:
            self._products[client] = Products(global_units, client, self.mean)
        return self._products[client]

    def forget(self, client: int) -> None:
        """Keep nothing of a client."""
        self._products.pop(client, None)

    def __call__(self, global_units: GlobalUnits, client: int) -> Gains:
        """Return all of a client's gains while it is taken out."""
        products, slots = self.products(global_units, client), global_units.numbering
        return self._gains(products, products.at(slots), global_units.popularity[slots])

    def exactly(
        self, global_units: GlobalUnits, client: int, rows: Integers, slots: Integers
    ) -> Gains:
        """Return some rows' gains in the existing units of some slots without error."""
        products = self.products(global_units, client)
        cross = products.exactly(slots, rows)
        return self._gains(products, cross, global_units.popularity[slots], rows)

    def roughly(self, global_units: GlobalUnits, client: int) -> Gains:
        """Return all of a client's gains at half the cost, with an error."""
        products, slots = self.products(global_units, client), global_units.numbering
        return self._gains(
            products, products.roughly(slots, self.room), global_units.popularity[slots]
        )

    def at_most(
        self, global_units: GlobalUnits, client: int, rows: Integers, slots: Integers
    ) -> Floats:
        """Return some rows' gains in some slots' units, and what the others gain there at most.

        That is judged by lengths alone: ``|w - m_i| >= ||w| - |m_i||``.

        Returns
        -------
        float array, shape (n, slots)
        """
        products = self.products(global_units, client)
        cross, popularity = products.exactly(slots, rows), global_units.popularity[slots]
        length = np.sqrt(self.mean_square(popularity, cross.square, cross.prior))
        nearest = np.sqrt(products.square)[:, None] - length
        gains: Floats = self.logs(popularity) - self.weight(popularity) * nearest**2
        gains[rows] = self._gains(products, cross, popularity, rows).existing
        return gains

    def precision(self, popularity: Integers) -> Floats:
        """Return ``S_i = s0 + n_i s``, shape (L,)."""
        precision: Floats = self.s0 + popularity * self.s
        return precision

    def weight(self, popularity: Integers) -> Floats:
        """Return ``s S_i / (s + S_i)``, what a squared distance from m_i costs, shape (L,)."""
        S = self.precision(popularity)
        weight: Floats = self.s * S / (self.s + S)
        return weight

    def mean_square(self, popularity: Integers, square: Floats, prior: Floats) -> Floats:
        """Return ``|m_i|^2`` from ``|T_i|^2`` and ``mu . T_i``, T_i sums of members, (L,)."""
        s, s0 = self.s, self.s0
        total = s0**2 * self.mean2 + 2 * s0 * s * prior + s**2 * square
        m2: Floats = total / self.precision(popularity) ** 2
        return m2

    def _gains(
        self,
        products: Products,
        cross: WithUnits,
        popularity: Integers,
        rows: Integers | None = None,
    ) -> Gains:
        s, s0 = self.s, self.s0
        weight, S = self.weight(popularity), self.precision(popularity)
        m2 = self.mean_square(popularity, cross.square, cross.prior)
        of_row = np.stack([products.square, products.prior, np.ones(len(products.square))], 1)
        of_unit = [-weight, 2 * weight * s0 / S, self.logs(popularity) - weight * m2]
        factor = 2 * weight * s / S
        existing = cross.cross
        existing *= factor
        # Torch adds the three rank-one terms in place, in its own threads.
        torch.from_numpy(existing).addmm_(
            torch.from_numpy(of_row if rows is None else of_row[rows]),
            torch.from_numpy(np.stack(of_unit)),
        )
        return Gains(existing, self.new(products), factor * cross.error)

    def new(self, products: Products) -> Floats:
        """Return a client's gains in a new unit, shape (n,)."""
        distance = products.square - 2 * products.prior + self.mean2
        gains: Floats = self.logs(np.zeros(1)) - self.s * self.s0 / (self.s + self.s0) * distance
        return gains

    def logs(self, popularity: Integers | Floats) -> Floats:
        """Return the log-determinants' part of the gain in units of some popularities."""
        if not self._log_determinant:
            return np.zeros(len(popularity))
        ratio = self.s / (self.s0 + popularity * self.s)  # d(n+1) / d(n) - 1
        logs: Floats = -len(self.mean) * np.log1p(ratio)
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

    def __call__(self, global_units: GlobalUnits, client: int) -> Gains:
        """Return all of a client's gains while it is taken out."""
        device = global_units.sums.device
        s, s0, mean = (torch.from_numpy(v).to(device) for v in (self._s, self._s0, self._mean))
        rows = global_units.rows(client)
        others = SumsOfOthers(global_units, client, global_units.numbering).block()
        popularity = global_units.popularity[global_units.numbering]
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
            np.zeros(len(popularity)),
        )

    def forget(self, client: int) -> None:
        """Nothing is kept."""

    def _logs(self, popularity: Integers | Floats) -> Floats:
        if not self._log_determinant:
            return np.zeros(len(popularity))
        logs: Floats = -np.log1p(self._s / (self._s0 + popularity[:, None] * self._s)).sum(1)
        return logs
