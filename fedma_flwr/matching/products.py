"""A client's products with the other clients' sums, brought up to date instead of made anew."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from .result import Floats, Integers
from .state import GlobalUnits

_UNIT_ROUNDOFF = 2.0**-24  # of float32
_TINY, _HUGE = 2.0**-126, 2.0**126  # smaller or larger products under- or overflow in float32
# Products of shorter rows take less than to certify what was made of inexact ones.
_LONG = 256
# Products with more than this many times the columns of the client's rows are not kept.
_KEPT_COLUMNS = 2


class WithUnits(NamedTuple):
    """A client's products with the sums T_i of the other clients' units."""

    cross: Floats  # w . T_i, (n, slots)
    square: Floats  # |T_i|^2, float64, (slots,)
    prior: Floats  # mu . T_i, float64, (slots,)
    error: Floats  # the largest error of a column of ``cross``, (slots,)


class Products:
    """The products that a client's gains need, for every slot of the state.

    On the CPU they are made in float32, in blocks of the signature that are summed in float64. A
    dot product of d terms then has an error of at most ``(d + 3) u |w| |T_i|``, u = 2^-24,
    whatever the order of the terms (Higham, "Accuracy and Stability of Numerical Algorithms",
    2nd ed., section 3.1; 3 for rounding w, T_i and the result), if nothing underflows. Who needs
    more asks for exact ones.

    Parameters
    ----------
    state : GlobalUnits
    client : int
    mean : float64 array, shape (D,)
        The prior mean, centred as the state's rows.

    Attributes
    ----------
    square, prior : float64 arrays, shape (n,)
        ``|w|^2`` and ``mu . w`` of the client's rows.
    """

    def __init__(self, state: GlobalUnits, client: int, mean: Floats) -> None:
        self._state, self._client = state, client
        self._mean, self._has_mean = torch.from_numpy(mean).to(state.sums.device), mean.any()
        self.square, self.prior = self._of_rows()
        self._set_dtype(_fast_dtype(state))

    def _set_dtype(self, dtype: torch.dtype) -> None:
        """Forget all products and make them so from now on."""
        self.dtype = dtype
        # As much memory as the client's rows, if these are float32; twice that at most.
        columns = len(self._mean) * (_KEPT_COLUMNS if dtype == torch.float32 else 1)
        self._keep = len(self._state.popularity) <= columns
        self._cross = torch.empty(len(self.square), 0, dtype=dtype).numpy()
        self._others = np.empty((2, 0))  # |T_i|^2 and mu . T_i
        self._first = True

    def at(self, slots: Integers, exact: bool) -> WithUnits:
        """Return the products with some slots, their sums taken without the client.

        Only slots that other clients have changed since the client's last visit are multiplied
        again, so this must be called for all units at every visit.

        Parameters
        ----------
        slots : int array
        exact : bool
            In float64, now and at all later visits.
        """
        if exact and self.dtype == torch.float32:
            self._set_dtype(torch.float64)
        cross, (square, prior) = (self._updated if self._keep else self._multiply)(slots)
        error = np.zeros(len(slots))
        if self.dtype == torch.float32:
            terms = max(block.stop - block.start for block in self._state.blocks) + 3
            longest = np.sqrt(self.square.max(initial=0.0))
            error += terms * _UNIT_ROUNDOFF * longest * np.sqrt(square) + len(self._mean) * _TINY
        return WithUnits(cross, square, prior, error)

    def exactly(self, slots: Integers, rows: Integers) -> WithUnits:
        """Return the products of some rows in float64; nothing is kept."""
        cross, (square, prior) = self._multiply(slots, rows)
        return WithUnits(cross, square, prior, np.zeros(len(slots)))

    def _updated(self, slots: Integers) -> tuple[Floats, Floats]:
        missing = len(self._state.popularity) - self._cross.shape[1]
        if missing:
            self._cross = np.pad(self._cross, ((0, 0), (0, missing)))
            self._others = np.pad(self._others, ((0, 0), (0, missing)))
        changed = self._state.changed[slots] > self._state.visited[self._client]
        stale = slots if self._first else slots[changed]
        self._first = False
        if len(stale):
            cross, self._others[:, stale] = self._multiply(stale)
            self._cross[:, stale] = cross
            if len(stale) == len(slots):
                return cross, self._others[:, slots]
        # Indexing would give an array in the wrong order, columns first.
        return np.take(self._cross, slots, axis=1), self._others[:, slots]

    def _of_rows(self) -> tuple[Floats, Floats]:
        square = prior = torch.zeros((), dtype=torch.float64)
        for block in self._state.blocks:
            rows = self._state.rows(self._client, block)
            square = square + torch.linalg.vecdot(rows, rows)
            prior = prior + rows @ self._mean[block]
        return square.cpu().numpy(), prior.cpu().numpy()

    def _multiply(self, slots: Integers, rows: Integers | None = None) -> tuple[Floats, Floats]:
        """Multiply all rows, or some in float64."""
        state, device = self._state, self._state.sums.device
        count = len(self.square) if rows is None else len(rows)
        cross = torch.zeros(count, len(slots), dtype=torch.float64, device=device)
        of_sums = torch.zeros(2, len(slots), dtype=torch.float64, device=device)
        sums = state.sums_of_others(self._client, slots)
        for block in state.blocks:
            others = sums.block(block)
            of_sums[0] += torch.linalg.vecdot(others, others)
            if self._has_mean:
                of_sums[1] += others @ self._mean[block]
            if rows is None and self.dtype == torch.float32:
                part = state.single_rows(self._client, block) @ others.float().T
                cross = part.double() if block.start == 0 else cross.add_(part)
            else:
                cross.addmm_(state.rows(self._client, block, rows), others.T)
        return cross.cpu().numpy(), of_sums.cpu().numpy()


def _fast_dtype(state: GlobalUnits) -> torch.dtype:
    """Return float32 where it pays and torch's products are what the error bound assumes."""
    device, size = state.sums.device, state.sums.shape[1]
    is_ieee = device.type == "cpu" and torch.get_float32_matmul_precision() == "highest"
    fits = is_ieee and state.largest_product < _HUGE
    return torch.float32 if fits and size >= _LONG else torch.float64
