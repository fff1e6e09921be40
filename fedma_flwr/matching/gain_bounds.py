"""Bounds on gains, that most rows stay where they are without a product of their own.

A row w gains ``-weight_i |w - m_i|^2`` in unit i, see ``gain.py``, so that most rows want the unit
that they have and no other comes near. Let w be in unit o, and e = w - m_o, which is short. Then

    w . m_i = m_o . m_i + e . m_i <= m_o . m_i + |e| |m_i|.

The products of all units with one another, made once for all clients, and one dot product a row
thus bound what a row gains elsewhere, as the distances between clusters do in Elkan's k-means
("Using the triangle inequality to accelerate k-means", ICML 2003). Only *measured* rows, those that
want to move, have products with all units. A unit that changes later is taken to be as near to the
others, the *bounded* ones, as it can be by its length; those for which that is not far enough, at
the units' prices, are measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .arrays import Floats, Integers
from .certificate import best_elsewhere
from .first_bounds import FirstBounds, Worth
from .gain import ScalarGain
from .global_units import GlobalUnits
from .single_precision import SingleSums

_ROOM = 32  # room for new units, as a part of those that there are


class ClientBounds(NamedTuple):
    """Bounds on a client's gains in existing units."""

    most: Floats
    """The most that a row gains in a slot's unit, -infinity where there is none, shape (n, slots);
    of a bounded row in the unit that it has, the least."""
    error: Floats
    """The most that a measured row's gain in a unit is less than that, shape (slots,)."""
    is_bounded: NDArray[np.bool_]
    """Which rows are not measured, shape (n,)."""
    elsewhere: Floats
    """The most that a bounded row gains in a unit that it does not have; else infinity, (n,)."""


class GainBounds:
    """Bounds on all clients' gains, brought up to date at every visit.

    Parameters
    ----------
    global_units : GlobalUnits
        Nobody is taken out.
    gain : ScalarGain
    worth : function of int array, shape (L,)
    measured : sequence of J bool arrays, shapes (L_j,)
        Rows that are measured at once; those that their units say little of are as well.
    """

    def __init__(
        self,
        global_units: GlobalUnits,
        gain: ScalarGain,
        worth: Worth,
        measured: Sequence[NDArray[np.bool_]],
    ) -> None:
        self._global_units, self._gain, self._worth = global_units, gain, worth
        self._held = list(global_units.slots)
        self._asked = [global_units.time for _ in global_units.slots]
        first = FirstBounds(global_units, gain, worth, measured)
        gain.room = SingleSums(len(gain.mean))  # gives back the memory
        self._is_measured = first.measured
        # For every slot: units were numbered as they came, and so are their slots.
        # With columns for some units to come.
        columns = global_units.width + global_units.width // _ROOM
        self._most = [np.empty((len(held), columns)) for held in global_units.slots]
        self._error = [np.zeros(columns) for _ in global_units.slots]
        self._elsewhere = []
        for client in range(len(global_units.slots)):
            most = self._most[client][:, : global_units.width]
            self._error[client][: global_units.width] = first.of_client(client, most)
            found = best_elsewhere(most, first.columns[client])
            self._elsewhere.append(np.where(first.measured[client], np.inf, found))

    def at(self, client: int) -> ClientBounds:
        """Return the bounds of a client that is taken out; to be asked at every visit."""
        global_units = self._global_units
        end = int(global_units.numbering.max(initial=-1)) + 1
        missing = end - len(self._error[client])
        if missing > 0:
            self._most[client] = np.pad(self._most[client], ((0, 0), (0, missing)))
            self._error[client] = np.pad(self._error[client], (0, missing))
        asked, slots = self._asked[client], global_units.slots[client]
        self._asked[client] = global_units.time
        news = np.flatnonzero(global_units.is_news(client, global_units.numbering, asked))
        if len(news):
            measured = np.flatnonzero(self._is_measured[client])
            changed = global_units.numbering[news]
            most = self._gain.at_most(global_units, client, measured, changed)
            most += self._worth(global_units.popularity[changed])
            self._most[client][:, changed] = most
            # What a unit gave before is left in: it is the most all the more.
            elsewhere = self._elsewhere[client]
            np.maximum(elsewhere, most.max(1), out=elsewhere)
            self._error[client][changed] = 0.0
        # These have no least gain in what they have any more.
        lost = global_units.is_news(client, slots, asked) | (slots != self._held[client])
        self.measure(client, np.flatnonzero(lost & ~self._is_measured[client]))
        most, error = self._most[client][:, :end], self._error[client][:end]
        most[:, global_units.popularity[:end] == 0] = -np.inf
        return ClientBounds(most, error, ~self._is_measured[client], self._elsewhere[client])

    def measure(self, client: int, rows: Integers) -> None:
        """Note what some rows of a client that is taken out gain in all units."""
        global_units = self._global_units
        self._is_measured[client][rows] = True
        self._elsewhere[client][rows] = np.inf
        if len(rows):
            gains = self._gain.exactly(global_units, client, rows, global_units.numbering).existing
            gains += self._worth(global_units.popularity[global_units.numbering])
            self._most[client][np.ix_(rows, global_units.numbering)] = gains
