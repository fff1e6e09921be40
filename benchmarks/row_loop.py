"""The baseline: the reference code's matching, written from the formulas, row by row."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment


class RowLoop:
    """BBP-MAP at unit variances and zero prior mean, one vectorised float32 expression a row.

    Every update builds the whole gain matrix anew and solves the full assignment problem; all
    sweeps are done. The denominator and ``|g|^2 / S`` are taken out of the row's expression.
    """

    def __init__(self, gamma: float, sweeps: int = 5) -> None:
        self.gamma, self.sweeps = gamma, sweeps

    def match(self, units: list[np.ndarray], seed: int = 0) -> tuple[float, int]:
        """Return the objective and the global width."""
        self.units = units
        self.sums = np.zeros((0, units[0].shape[1]), dtype=np.float32)
        self.popularity = np.zeros(0, dtype=np.int64)
        self.columns: list[np.ndarray | None] = [None] * len(units)
        rng = np.random.default_rng(seed)
        for client in sorted(range(len(units)), key=lambda j: -len(units[j])):
            self._put(client)
        for _ in range(self.sweeps):
            for client in rng.permutation(len(units)):
                self._take(client)
                self._put(client)
        squares = (self.sums.astype(np.float64) ** 2).sum(1)
        return float((squares / (1 + self.popularity)).sum()), len(self.sums)

    def _take(self, client: int) -> None:
        columns = self.columns[client]
        self.sums[columns] -= self.units[client]
        self.popularity[columns] -= 1
        kept = self.popularity > 0
        number = np.cumsum(kept) - 1
        self.sums, self.popularity = self.sums[kept], self.popularity[kept]
        self.columns[client] = None
        self.columns = [c if c is None else number[c] for c in self.columns]

    def _gain(self, rows: np.ndarray) -> np.ndarray:
        clients, width = len(self.units), len(self.sums)
        precision = (1 + self.popularity[:, None]).astype(np.float32)
        joined = precision + np.float32(1)
        alone = (self.sums**2 / precision).sum(1)
        capped = np.minimum(self.popularity, 10)
        logs = np.log(capped / (clients - capped))
        slots = min(len(rows), max(700 - width, 1))
        gain = np.empty((len(rows), width + slots))
        prices = 2 * np.log(np.arange(1, slots + 1)) - 2 * np.log(self.gamma / clients)
        for index, row in enumerate(rows):
            gain[index, :width] = ((row + self.sums) ** 2 / joined).sum(1) - alone + logs
            gain[index, width:] = (row**2).sum() / 2 - prices
        return gain

    def _put(self, client: int) -> None:
        rows, width = self.units[client], len(self.sums)
        columns = linear_sum_assignment(self._gain(rows), maximize=True)[1]
        opened = columns >= width
        columns[opened] = width + np.arange(opened.sum())
        grown = np.zeros((int(opened.sum()), rows.shape[1]), dtype=np.float32)
        self.sums = np.vstack([self.sums, grown])
        self.popularity = np.append(self.popularity, np.zeros(len(grown), dtype=np.int64))
        self.sums[columns] += rows
        self.popularity[columns] += 1
        self.columns[client] = columns
