"""The bounds on gains as they are made, while nothing has changed yet; see ``gain_bounds.py``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .arrays import Floats, Integers
from .gain import ScalarGain
from .global_units import GlobalUnits
from .products import TINY, rounding
from .single_precision import SingleProduct

# A row whose squared distance from its unit's mean is more than this part of that from the prior
# mean is measured from the start.
_FAR = 1 / 2

Worth = Callable[[Integers], Floats]
"""The part of the gain in units of some popularities that comes from these."""


class _WithoutClient(NamedTuple):
    """The units as they are once a client is taken out, and its rows beside them.

    Where its row v is in unit i, ``m_i`` moves away from it, by ``s / (S_i - s) (m_i - v)``.
    """

    step: Floats  # how far a mean moves, as a part of its distance from v, (L,)
    square: Floats  # |m_i|^2, (L,)
    error: Floats  # of that, where the client has a row, (L,)
    fixed: Floats  # the part of the gain that does not depend on the row, (L,)
    weight: Floats  # what a squared distance costs, (L,)
    distance: Floats  # of a row from its unit's mean before, at most, (n,)
    error_of_row: Floats  # of twice a row's products, its own part, (n,)


class FirstBounds:
    """Bounds on all clients' gains while nothing has changed yet.

    Products are in float32. The error of twice a product is at most r times twice its factors'
    lengths, see :class:`Products`, and ``2 a b <= a^2 + b^2``: so every row and every unit has
    its own part of the error, r times its square.

    Parameters
    ----------
    global_units, gain, worth, measured
        Those of :class:`GainBounds`.

    Attributes
    ----------
    measured : list of J bool arrays, shapes (L_j,)
        Rows that have products with all units.
    columns : tuple of J int arrays, shapes (L_j,)
        The numbers of their units.
    """

    def __init__(
        self,
        global_units: GlobalUnits,
        gain: ScalarGain,
        worth: Worth,
        measured: Sequence[NDArray[np.bool_]],
    ) -> None:
        self._global_units, self._gain, self._worth = global_units, gain, worth
        self._rounding = rounding(global_units, global_units.width)
        self._tiny = len(gain.mean) * TINY
        # Of products that are not made in blocks, as a multiple of that.
        self._coarser = rounding(global_units) / self._rounding
        self.columns = global_units.assignments()
        self._popularity = global_units.popularity[global_units.numbering]
        self._share = gain.s / gain.precision(self._popularity)  # of a member in the mean
        exact = global_units.all_sums()
        self._sums, found = gain.room.of(exact)
        square = found.numpy()
        prior = (exact @ torch.from_numpy(gain.mean)).numpy() if gain.mean2 else 0 * square
        self._multiply_sums()
        self._make_means(square, prior)
        self.measured = [rows | self._is_far(client) for client, rows in enumerate(measured)]
        self._multiply_measured_rows()

    def _multiply_sums(self) -> None:
        """Multiply sums with one another and rows with their units' sums."""
        global_units, width = self._global_units, self._global_units.width
        cross = SingleProduct(width)
        for block in global_units.blocks(width, itemsize=4):
            cross.add(self._sums[:, block], self._sums[:, block])
        self._cross = cross.double()[:width]
        self._own = [np.zeros(len(held)) for held in self.columns]
        for client, held in enumerate(self.columns):
            for part in global_units.parts(client):
                units = torch.index_select(self._sums, 0, global_units.index(held[part])).numpy()
                rows = global_units.single_rows(client, part=part).numpy()
                self._own[client][part] = np.einsum("ld,ld->l", units, rows)

    def _make_means(self, square: Floats, prior: Floats) -> None:
        """Make products of sums those of means; note the means' squares and errors."""
        gain, S = self._gain, self._gain.precision(self._popularity)
        self._square = gain.mean_square(self._popularity, square, prior)
        # A bound on the means' lengths in which nothing cancels.
        length = self._share * np.sqrt(square) + gain.s0 / S * np.sqrt(gain.mean2)
        self._error = self._rounding * length**2 + self._tiny * self._share**2
        self._cross *= gain.s**2
        self._cross += gain.s0**2 * gain.mean2 + gain.s0 * gain.s * (prior[:, None] + prior)
        self._cross /= S
        self._cross /= S[:, None]

    def _is_far(self, client: int) -> NDArray[np.bool_]:
        """Return which rows are so far from their units' means that bounds would say little."""
        rows = self._gain.products(self._global_units, client)
        _, apart = self._own_products(client)
        from_prior = rows.square - 2 * rows.prior + self._gain.mean2
        far: NDArray[np.bool_] = apart > _FAR * from_prior
        return far

    def _own_products(self, client: int) -> tuple[Floats, Floats]:
        """Return ``w . m_o`` and ``|w - m_o|^2`` of a client's rows and their units, (n,)."""
        gain, columns = self._gain, self.columns[client]
        rows = gain.products(self._global_units, client)
        of_sum = gain.s0 * rows.prior + gain.s * self._own[client]
        product = self._share[columns] / gain.s * of_sum
        return product, rows.square - 2 * product + self._square[columns]

    def _multiply_measured_rows(self) -> None:
        """Multiply measured rows with all sums and with all rows of their client."""
        global_units, width = self._global_units, self._global_units.width
        chosen = [np.flatnonzero(rows) for rows in self.measured]
        direct = SingleProduct(width)
        self._kin = [SingleProduct(len(held)) for held in self.columns]
        for block in global_units.blocks(width, itemsize=4):
            measured = []
            for client, some in enumerate(chosen):
                rows = global_units.single_rows(client, block)
                measured.append(torch.index_select(rows, 0, global_units.index(some)))
                self._kin[client].add(measured[-1], rows)
            direct.add(torch.cat(measured), self._sums[:, block])
        self._direct = np.split(direct.double(), np.cumsum([len(some) for some in chosen]))

    def of_client(self, client: int, most: Floats) -> Floats:
        """Write a client's bounds once it is taken out into ``most``; return their errors."""
        without = self._without(client)
        self._bound_rows(client, without, most)
        return self._measure_rows(client, without, most)

    def _without(self, client: int) -> _WithoutClient:
        gain, columns = self._gain, self.columns[client]
        share, popularity = self._share[columns], self._popularity.copy()
        error_of_row = self._rounding * gain.products(self._global_units, client).square
        error_of_row += self._tiny
        error = self._coarser * (error_of_row + self._error[columns])
        product, apart = self._own_products(client)

        popularity[columns] -= 1
        step = np.zeros(len(popularity))
        step[columns] = share / (1 - share)
        square, off = self._square.copy(), np.zeros(len(popularity))
        square[columns] += 2 * step[columns] * (square[columns] - product)
        square[columns] += step[columns] ** 2 * apart
        off[columns] = step[columns] * (1 + step[columns]) * error

        held = np.maximum(popularity, 1)  # units may be empty
        fixed, weight = gain.logs(held) + self._worth(held), gain.weight(popularity)
        distance = np.sqrt((apart + error).clip(0.0))
        return _WithoutClient(step, square, off, fixed, weight, distance, error_of_row)

    def _bound_rows(self, client: int, without: _WithoutClient, most: Floats) -> None:
        """Write all rows' bounds: ``m_o . m_i + |e| |m_i|``, and what m_i may have moved.

        |w - m_i|^2 >= |w|^2 - 2 (m_o . m_i + |e| |m_i| + |w| moved) + square.
        """
        step, square, error, fixed, weight, distance, _ = without
        columns, own = self.columns[client], self._gain.products(self._global_units, client).square
        moved = np.zeros(len(step))
        moved[columns] = step[columns] * distance
        of_row = [own - self._error[columns], distance, np.sqrt(own), np.ones(len(columns))]
        of_unit = [-weight, 2 * weight * np.sqrt(self._square), 2 * weight * moved]
        of_unit.append(fixed - weight * (square - error - self._error))
        np.multiply(np.take(self._cross, columns, axis=0), 2 * weight, out=most)
        torch.from_numpy(most).addmm_(
            torch.from_numpy(np.stack(of_row, 1)), torch.from_numpy(np.stack(of_unit))
        )
        share = self._share[columns]
        least = fixed[columns] - weight[columns] * (distance / (1 - share)) ** 2
        most[np.arange(len(columns)), columns] = least

    def _measure_rows(self, client: int, without: _WithoutClient, most: Floats) -> Floats:
        """Write the measured rows' gains, the most that they can be; return their errors, (L,)."""
        step, square, error, fixed, weight, _, error_of_row = without
        gain, columns, rows = (
            self._gain,
            self.columns[client],
            np.flatnonzero(self.measured[client]),
        )
        own = gain.products(self._global_units, client)
        longest = error_of_row.max(initial=0.0)
        error = error + (1 + step) * (self._error + longest)
        error[columns] += step[columns] * (longest + error_of_row)
        of_sums = gain.s0 * own.prior[rows, None] + gain.s * self._direct[client]
        products = self._share / gain.s * of_sums
        products *= 1 + step
        products[:, columns] -= step[columns] * self._kin[client].double()
        most[rows] = fixed - weight * (own.square[rows, None] - 2 * products + square - error)
        errors: Floats = 2 * weight * error
        return errors
