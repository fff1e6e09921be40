"""Bounds on gains, that most rows stay where they are without a product of their own.

A row w gains ``-weight_i |w - m_i|^2`` in unit i, see ``gain.py``, so that most rows want the unit
that they have and no other comes near. Let w be in unit o, and e = w - m_o, which is short. Then

    w . m_i = m_o . m_i + e . m_i <= m_o . m_i + |e| |m_i|.

The products of all units with one another, made once for all clients, and one dot product a row
thus bound what a row gains elsewhere, as the distances between clusters do in Elkan's k-means
("Using the triangle inequality to accelerate k-means", ICML 2003). Only *open* rows, those that
want to move, have products with all units. A unit that changes later is taken to be as near to the
others, the *closed* ones, as it can be by its length; those for which that is not far enough, at
the units' prices, are opened.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .certificate import best_elsewhere
from .gain import ScalarGain
from .products import TINY, rounding
from .result import Floats, Integers
from .single import SingleProduct, SingleSums
from .state import GlobalUnits

# A row whose squared distance from its unit's mean is more than this part of that from the prior
# mean is open from the start.
_FAR = 1 / 2
_ROOM = 32  # room for new units, as a part of those that there are

Worth = Callable[[Integers], Floats]
"""The part of the gain in units of some popularities that comes from these."""


class Bounded(NamedTuple):
    """What is known of a client's gains in existing units."""

    most: Floats
    """The most that a row gains in a slot's unit, -infinity where there is none, shape (n, slots);
    of a closed row in the unit that it has, the least."""
    error: Floats
    """The most that an open row's gain in a unit is less than that, shape (slots,)."""
    closed: NDArray[np.bool_]
    """Shape (n,)."""
    elsewhere: Floats
    """The most that a closed row gains in a unit that it does not have; else infinity, (n,)."""


class Bounds:
    """Bounds on all clients' gains, brought up to date at every visit.

    Parameters
    ----------
    state : GlobalUnits
        Nobody is taken out.
    gain : ScalarGain
    worth : function of int array, shape (L,)
    opened : sequence of J bool arrays, shapes (L_j,)
        Rows that are open from the start; those that their units say little of are as well.
    """

    def __init__(
        self,
        state: GlobalUnits,
        gain: ScalarGain,
        worth: Worth,
        opened: Sequence[NDArray[np.bool_]],
    ) -> None:
        self._state, self._gain, self._worth = state, gain, worth
        self._held = list(state.slots)
        self._asked = [state.time for _ in state.slots]
        made = Made(state, gain, worth, opened)
        gain.room = SingleSums(len(gain.mean))  # gives back the memory
        self._open = made.opened
        # For every slot: units were numbered as they came, and so are their slots.
        # With columns for some units to come.
        columns = state.width + state.width // _ROOM
        self._most = [np.empty((len(held), columns)) for held in state.slots]
        self._error = [np.zeros(columns) for _ in state.slots]
        self._elsewhere = []
        for client in range(len(state.slots)):
            most = self._most[client][:, : state.width]
            self._error[client][: state.width] = made.of_client(client, most)
            found = best_elsewhere(most, made.columns[client])
            self._elsewhere.append(np.where(made.opened[client], np.inf, found))

    def at(self, client: int) -> Bounded:
        """Return the bounds of a client that is taken out; to be asked at every visit."""
        state = self._state
        end = int(state.numbering.max(initial=-1)) + 1
        missing = end - len(self._error[client])
        if missing > 0:
            self._most[client] = np.pad(self._most[client], ((0, 0), (0, missing)))
            self._error[client] = np.pad(self._error[client], (0, missing))
        asked, slots = self._asked[client], state.slots[client]
        self._asked[client] = state.time
        news = np.flatnonzero(state.is_news(client, state.numbering, asked))
        if len(news):
            opened, changed = np.flatnonzero(self._open[client]), state.numbering[news]
            most = self._gain.at_most(state, client, opened, changed)
            most += self._worth(state.popularity[changed])
            self._most[client][:, changed] = most
            # What a unit gave before is left in: it is the most all the more.
            elsewhere = self._elsewhere[client]
            np.maximum(elsewhere, most.max(1), out=elsewhere)
            self._error[client][changed] = 0.0
        # These have no least gain in what they have any more.
        lost = state.is_news(client, slots, asked) | (slots != self._held[client])
        self.open(client, np.flatnonzero(lost & ~self._open[client]))
        most, error = self._most[client][:, :end], self._error[client][:end]
        most[:, state.popularity[:end] == 0] = -np.inf
        return Bounded(most, error, ~self._open[client], self._elsewhere[client])

    def open(self, client: int, rows: Integers) -> None:
        """Open some rows of a client that is taken out; note what they gain in all units."""
        state = self._state
        self._open[client][rows] = True
        self._elsewhere[client][rows] = np.inf
        if len(rows):
            gains = self._gain.exactly(state, client, rows, state.numbering).existing
            gains += self._worth(state.popularity[state.numbering])
            self._most[client][np.ix_(rows, state.numbering)] = gains


class Made:
    """The bounds as they are made, while nothing has changed yet.

    Products are in float32. The error of twice a product is at most r times twice its factors'
    lengths, see :class:`Products`, and ``2 a b <= a^2 + b^2``: so every row and every unit has
    its own part of the error, r times its square.
    """

    def __init__(
        self,
        state: GlobalUnits,
        gain: ScalarGain,
        worth: Worth,
        opened: Sequence[NDArray[np.bool_]],
    ) -> None:
        self._state, self._gain, self._worth = state, gain, worth
        self._rounding, self._tiny = rounding(state, state.width), len(gain.mean) * TINY
        # Of products that are not made in blocks, as a multiple of that.
        self._coarser = rounding(state) / self._rounding
        self.columns = state.assignments()
        self._popularity = state.popularity[state.numbering]
        S = gain.precision(self._popularity)
        self._share = gain.s / S  # of a member in the mean
        exact = state.all_sums()
        self._sums, found = gain.room.of(exact)
        square = found.numpy()
        prior = (exact @ torch.from_numpy(gain.mean)).numpy() if gain.mean2 else 0 * square
        self._multiply_sums()
        self._square = gain.mean_square(self._popularity, square, prior)
        # A bound on the means' lengths in which nothing cancels.
        length = self._share * np.sqrt(square) + gain.s0 / S * np.sqrt(gain.mean2)
        self._error = self._rounding * length**2 + self._tiny * self._share**2
        # Products of sums become those of means.
        self._cross *= gain.s**2
        self._cross += gain.s0**2 * gain.mean2 + gain.s0 * gain.s * (prior[:, None] + prior)
        self._cross /= S
        self._cross /= S[:, None]
        self.opened = [rows | self._is_far(client) for client, rows in enumerate(opened)]
        self._multiply_open_rows()

    def _is_far(self, client: int) -> NDArray[np.bool_]:
        """Return which rows are so far from their units' means that bounds would say little."""
        rows = self._gain.products(self._state, client)
        _, apart = self._own_products(client)
        from_prior = rows.square - 2 * rows.prior + self._gain.mean2
        far: NDArray[np.bool_] = apart > _FAR * from_prior
        return far

    def _own_products(self, client: int) -> tuple[Floats, Floats]:
        """Return ``w . m_o`` and ``|w - m_o|^2`` of a client's rows and their units, (L_j,)."""
        gain, columns = self._gain, self.columns[client]
        rows = gain.products(self._state, client)
        of_sum = gain.s0 * rows.prior + gain.s * self._own[client]
        product = self._share[columns] / gain.s * of_sum
        return product, rows.square - 2 * product + self._square[columns]

    def of_client(self, client: int, most: Floats) -> Floats:
        """Write a client's bounds once it is taken out into ``most``; return their errors.

        Where a client's row v is in unit i, ``m_i`` then moves away from it, by
        ``s / (S_i - s) (m_i - v)``.
        """
        gain, columns = self._gain, self.columns[client]
        rows, opened = gain.products(self._state, client), np.flatnonzero(self.opened[client])
        share, popularity = self._share[columns], self._popularity.copy()
        error_of_row = self._rounding * rows.square + self._tiny
        error = self._coarser * (error_of_row + self._error[columns])
        product, apart = self._own_products(client)
        distance = np.sqrt((apart + error).clip(0.0))

        popularity[columns] -= 1
        step = np.zeros(len(popularity))  # how far a mean moves, as a part of its distance from v
        step[columns] = share / (1 - share)
        moved = np.zeros(len(popularity))
        moved[columns] = step[columns] * distance
        square, off = self._square.copy(), np.zeros(len(popularity))
        square[columns] += 2 * step[columns] * (square[columns] - product)
        square[columns] += step[columns] ** 2 * apart
        off[columns] = step[columns] * (1 + step[columns]) * error

        # |w - m_i|^2 >= |w|^2 - 2 (m_o . m_i + |e| |m_i| + |w| moved) + square.
        fixed, weight = self._fixed(popularity), gain.weight(popularity)
        of_row = [rows.square - self._error[columns], distance, np.sqrt(rows.square)]
        of_unit = [-weight, 2 * weight * np.sqrt(self._square), 2 * weight * moved]
        of_row.append(np.ones(len(columns)))
        of_unit.append(fixed - weight * (square - off - self._error))
        np.multiply(np.take(self._cross, columns, axis=0), 2 * weight, out=most)
        torch.from_numpy(most).addmm_(
            torch.from_numpy(np.stack(of_row, 1)), torch.from_numpy(np.stack(of_unit))
        )
        least = fixed[columns] - weight[columns] * (distance / (1 - share)) ** 2
        most[np.arange(len(columns)), columns] = least

        longest = error_of_row.max(initial=0.0)
        off += (1 + step) * (self._error + longest)
        off[columns] += step[columns] * (longest + error_of_row)
        products = (
            self._share
            / gain.s
            * (gain.s0 * rows.prior[opened, None] + gain.s * self._direct[client])
        )
        products *= 1 + step
        products[:, columns] -= step[columns] * self._kin[client].double()
        most[opened] = fixed - weight * (rows.square[opened, None] - 2 * products + square - off)
        return 2 * weight * off

    def _fixed(self, popularity: Integers) -> Floats:
        """Return the part of the gain that does not depend on the row; units may be empty."""
        popularity = np.maximum(popularity, 1)
        fixed: Floats = self._gain.logs(popularity) + self._worth(popularity)
        return fixed

    def _multiply_sums(self) -> None:
        """Multiply sums with one another and rows with their units' sums."""
        state, width = self._state, self._state.width
        cross = SingleProduct(width)
        for block in state.blocks(width, itemsize=4):
            cross.add(self._sums[:, block], self._sums[:, block])
        self._cross = cross.double()[:width]
        self._own = [np.zeros(len(held)) for held in self.columns]
        for client, held in enumerate(self.columns):
            for part in state.parts(client):
                units = torch.index_select(self._sums, 0, state.index(held[part])).numpy()
                rows = state.single_rows(client, part=part).numpy()
                self._own[client][part] = np.einsum("ld,ld->l", units, rows)

    def _multiply_open_rows(self) -> None:
        """Multiply open rows with all sums and with all rows of their client."""
        state, width = self._state, self._state.width
        chosen = [np.flatnonzero(rows) for rows in self.opened]
        direct = SingleProduct(width)
        self._kin = [SingleProduct(len(held)) for held in self.columns]
        for block in state.blocks(width, itemsize=4):
            opened = []
            for client, some in enumerate(chosen):
                rows = state.single_rows(client, block)
                opened.append(torch.index_select(rows, 0, state.index(some)))
                self._kin[client].add(opened[-1], rows)
            direct.add(torch.cat(opened), self._sums[:, block])
        self._direct = np.split(direct.double(), np.cumsum([len(some) for some in chosen]))
