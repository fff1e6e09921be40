"""Products in float32, as fast as they can be."""

from __future__ import annotations

import numpy as np
import torch

from .arrays import Floats

# Right factors have a multiple of so many rows: products with others take up to a third longer.
_ALIGNED = 16
_ROWS = 64  # so many rows of sums stay in a core's cache


def aligned(rows: int) -> int:
    """Return how many rows a right factor has that stands for so many."""
    return rows + -rows % _ALIGNED


def squares(rows: torch.Tensor) -> torch.Tensor:
    """Return the rows' squared lengths, shape (n,)."""
    # Several times as fast as torch.linalg.vecdot.
    lengths: torch.Tensor = torch.linalg.vector_norm(rows, dim=1)
    return lengths.square_()


class SingleSums:
    """Memory for sums in float32.

    Parameters
    ----------
    size : int
        The signature's length.
    """

    def __init__(self, size: int) -> None:
        self._room = np.empty((0, size), dtype=np.float32)

    def of(self, sums: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return sums in float32, and their squared lengths in float64.

        Rows of zeros make up an :func:`aligned` number. The next call writes to the same memory.

        Parameters
        ----------
        sums : float64 tensor, shape (L, D)
        """
        count, rows = len(sums), aligned(len(sums))
        if len(self._room) < rows:
            # Somewhat more than now: units are added at every visit.
            self._room = np.empty((aligned(rows + rows // 8), sums.shape[1]), dtype=np.float32)
        single = torch.from_numpy(self._room[:rows])
        square = torch.empty(count, dtype=torch.float64)
        for start in range(0, count, _ROWS):
            part = slice(start, min(start + _ROWS, count))
            single[part] = sums[part]
            square[part] = squares(sums[part])
        single[count:] = 0.0
        return single, square


class SingleProduct:
    """A product in float32, added up over blocks of the signature.

    Parameters
    ----------
    columns : int
        How many of its columns are wanted.
    """

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._sum = torch.empty(0)

    def add(self, left: torch.Tensor, right: torch.Tensor) -> None:
        """Add a block's product, of shapes (rows, d) and (at least ``columns``, d)."""
        part = left @ right.T
        self._sum = part if self._sum.ndim == 1 else self._sum.add_(part)

    def double(self) -> Floats:
        """Return the sum in float64, shape (rows, columns)."""
        wanted = self._sum[:, : self._columns]
        # Its memory can be taken over by the next, somewhat wider one.
        size = len(wanted) * aligned(self._columns)
        room = torch.empty(size, dtype=torch.float64)[: wanted.numel()]
        return room.view(wanted.shape).copy_(wanted).numpy()
