"""A client's products with the other clients' sums, brought up to date instead of made anew."""

from __future__ import annotations

import numpy as np
import torch

from .result import Floats, Integers
from .state import GlobalUnits


class Products:
    """The products that a client's gains need, for every slot of the state.

    Parameters
    ----------
    state : GlobalUnits
    client : int
    mean : float64 array, shape (D,)
        The prior mean, centred as the state's rows.
    keep : bool
        Keep the products between visits: worth its memory where signatures are long.

    Attributes
    ----------
    square, prior : float64 arrays, shape (n,)
        ``|w|^2`` and ``mu . w`` of the client's rows.
    """

    def __init__(self, state: GlobalUnits, client: int, mean: Floats, keep: bool) -> None:
        self._state, self._client, self._keep = state, client, keep
        self._mean = torch.from_numpy(mean).to(state.sums.device)
        self.square, self.prior = self._of_rows()
        self._cross = np.empty((len(self.square), 0))  # w . T_i
        self._others = np.empty((2, 0))  # |T_i|^2 and mu . T_i
        self._first = True

    def at(self, slots: Integers) -> tuple[Floats, Floats, Floats]:
        """Return ``w . T_i``, ``|T_i|^2`` and ``mu . T_i`` of some slots, T_i without the client.

        Only slots that other clients have changed since the client's last visit are multiplied
        again, so this must be called for all units at every visit.

        Returns
        -------
        cross : float64 array, shape (n, slots)
        square, prior : float64 arrays, shape (slots,)
        """
        if not self._keep:
            cross, (square, prior) = self._multiply(slots)
            return cross, square, prior
        missing = len(self._state.popularity) - self._cross.shape[1]
        if missing:
            self._cross = np.pad(self._cross, ((0, 0), (0, missing)))
            self._others = np.pad(self._others, ((0, 0), (0, missing)))
        changed = self._state.changed[slots] > self._state.visited[self._client]
        stale = slots if self._first else slots[changed]
        self._first = False
        if len(stale):
            self._cross[:, stale], self._others[:, stale] = self._multiply(stale)
        square, prior = self._others[:, slots]
        return self._cross[:, slots], square, prior

    def _of_rows(self) -> tuple[Floats, Floats]:
        square = prior = torch.zeros((), dtype=torch.float64)
        for block in self._state.blocks:
            rows = self._state.rows(self._client, block)
            square = square + torch.linalg.vecdot(rows, rows)
            prior = prior + rows @ self._mean[block]
        return square.cpu().numpy(), prior.cpu().numpy()

    def _multiply(self, slots: Integers) -> tuple[Floats, Floats]:
        device = self._state.sums.device
        cross = torch.zeros(len(self.square), len(slots), dtype=torch.float64, device=device)
        of_sums = torch.zeros(2, len(slots), dtype=torch.float64, device=device)
        for block in self._state.blocks:
            rows = self._state.rows(self._client, block)
            others = self._state.sums_of_others(self._client, rows, slots, block)
            cross.addmm_(rows, others.T)
            of_sums[0] += torch.linalg.vecdot(others, others)
            of_sums[1] += others @ self._mean[block]
        return cross.cpu().numpy(), of_sums.cpu().numpy()
