"""The sums of the global units over all clients but one."""

from __future__ import annotations

import numpy as np
import torch

from .arrays import Integers
from .global_units import GlobalUnits


class SumsOfOthers:
    """The sums of some slots over all clients but one, in blocks of the signature.

    Parameters
    ----------
    global_units : GlobalUnits
    client : int
        The one that does not count.
    slots : int array
    rows : int array or None
        Some of the client's rows that are given to :meth:`block`, increasing; None: no row is.
    """

    def __init__(
        self, global_units: GlobalUnits, client: int, slots: Integers, rows: Integers | None = None
    ) -> None:
        self._global_units, self._client = global_units, client
        # What is consecutive need not be copied.
        plain = (slots == np.arange(len(slots))).all()
        self._slots = slice(len(slots)) if plain else global_units.index(slots)
        own = global_units.slots[client]
        position = np.full(len(global_units.popularity), -1)
        position[slots] = np.arange(len(slots))
        targets = position[own]
        self._held = np.flatnonzero(targets >= 0)
        self._targets = global_units.index(targets[self._held])
        self._places = None if rows is None else _places(self._held, rows)

    def block(self, block: slice = slice(None), rows: torch.Tensor | None = None) -> torch.Tensor:
        """Return the block's columns, float64, shape (slots, d); not to be written to.

        ``rows`` are the block's columns of the rows that the constructor was told of.
        """
        sums = self._global_units.sums[:, block]
        if isinstance(self._slots, torch.Tensor):
            sums = torch.index_select(sums, 0, self._slots)
        elif not len(self._held):
            return sums[self._slots]
        else:
            sums = sums[self._slots].clone()
        if not len(self._held):
            return sums
        if rows is None or self._places is None:
            own = self._global_units.rows(self._client, block, self._held)
        else:
            own = torch.index_select(rows, 0, self._global_units.index(self._places))
        return sums.index_add_(0, self._targets, own, alpha=-1)


def _places(chosen: Integers, rows: Integers) -> Integers | None:
    """Return where in ``rows``, which are increasing, some of them are; None: not all are."""
    places = np.searchsorted(rows, chosen)
    is_there = len(rows) > 0 and (rows[np.minimum(places, len(rows) - 1)] == chosen).all()
    return places if is_there else None
