"""A client's products with the other clients' sums, brought up to date instead of made anew."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from .arrays import Floats, Integers
from .global_units import GlobalUnits
from .single_precision import SingleProduct, SingleSums, squares
from .sums_of_others import SumsOfOthers

_UNIT_ROUNDOFF = 2.0**-24  # of float32
TINY, _HUGE = 2.0**-126, 2.0**126  # smaller or larger products under- or overflow in float32
# Products of shorter rows take less than to certify what was made of inexact ones.
_LONG = 256


class WithUnits(NamedTuple):
    """A client's products with the sums T_i of the other clients' units."""

    cross: Floats  # w . T_i, (rows, slots)
    square: Floats  # |T_i|^2, float64, (slots,)
    prior: Floats  # mu . T_i, float64, (slots,)
    error: Floats  # the largest error of a column of ``cross``, (slots,)


class Products:
    """The products that a client's gains need.

    Exact ones, in float64, are kept between visits and brought up to date. Rough ones are made in
    float32, in b blocks of d terms each. They have an error of at most ``(d + b + 3) u |w| |T_i|``,
    u = 2^-24, whatever the order of a block's terms (Higham, "Accuracy and Stability of Numerical
    Algorithms", 2nd ed., section 3.1; 2 for rounding w and T_i, 1 for the terms of second order),
    if nothing underflows.

    Parameters
    ----------
    global_units : GlobalUnits
    client : int
    mean : float64 array, shape (D,)
        The prior mean, centred as the rows are.

    Attributes
    ----------
    square, prior : float64 arrays, shape (n,)
        ``|w|^2`` and ``mu . w`` of the client's rows.
    """

    def __init__(self, global_units: GlobalUnits, client: int, mean: Floats) -> None:
        self._global_units, self._client = global_units, client
        self._mean, self._has_mean = torch.from_numpy(mean).to(global_units.sums.device), mean.any()
        self.square, self.prior = self._of_rows()
        # As much memory as the client's rows, twice that if these are float32.
        self._keep = global_units.width <= len(mean)
        self._cross = np.empty((len(self.square), 0))
        self._others = np.empty((2, 0))  # |T_i|^2 and mu . T_i
        self._made: int | None = None  # when what is kept was last brought up to date

    def at(self, slots: Integers) -> WithUnits:
        """Return the exact products with all units, their sums taken without the client.

        Only slots that other clients have changed since the last call are multiplied again.
        """
        cross, (square, prior) = (self._updated if self._keep else self._multiply)(slots)
        return WithUnits(cross, square, prior, np.zeros(len(slots)))

    def exactly(self, slots: Integers, rows: Integers) -> WithUnits:
        """Return the exact products of some rows with some slots; nothing is kept."""
        cross, (square, prior) = self._multiply(slots, rows)
        return WithUnits(cross, square, prior, np.zeros(len(slots)))

    def roughly(self, slots: Integers, room: SingleSums) -> WithUnits:
        """Return the rough products of all rows with some slots; nothing is kept."""
        cross, (square, prior) = self._multiply_roughly(slots, room)
        longest = np.sqrt(self.square.max(initial=0.0))
        error = rounding(self._global_units, len(slots)) * longest * np.sqrt(square)
        return WithUnits(cross, square, prior, error + len(self._mean) * TINY)

    def _updated(self, slots: Integers) -> tuple[Floats, Floats]:
        global_units = self._global_units
        missing = len(global_units.popularity) - self._cross.shape[1]
        if missing:
            self._cross = np.pad(self._cross, ((0, 0), (0, missing)))
            self._others = np.pad(self._others, ((0, 0), (0, missing)))
        stale = slots
        if self._made is not None:
            stale = slots[global_units.is_news(self._client, slots, self._made)]
        self._made = global_units.time
        if len(stale):
            cross, self._others[:, stale] = self._multiply(stale)
            self._cross[:, stale] = cross
            if len(stale) == len(slots):
                return cross, self._others[:, slots]
        # Indexing would give an array in the wrong order, columns first.
        return np.take(self._cross, slots, axis=1), self._others[:, slots]

    def _of_rows(self) -> tuple[Floats, Floats]:
        square, prior = [], []
        for part in self._global_units.parts(self._client):
            rows = self._global_units.rows(self._client, chosen=part)
            square.append(squares(rows))
            prior.append(rows @ self._mean if self._has_mean else torch.zeros_like(square[-1]))
        return torch.cat(square).cpu().numpy(), torch.cat(prior).cpu().numpy()

    def _multiply(self, slots: Integers, rows: Integers | None = None) -> tuple[Floats, Floats]:
        global_units, device = self._global_units, self._global_units.sums.device
        chosen = np.arange(len(self.square)) if rows is None else rows
        cross = torch.zeros(len(chosen), len(slots), dtype=torch.float64, device=device)
        of_sums = torch.zeros(2, len(slots), dtype=torch.float64, device=device)
        sums = SumsOfOthers(global_units, self._client, slots, chosen)
        for block in global_units.blocks(len(slots)):
            own = global_units.rows(self._client, block, chosen)
            others = sums.block(block, own)
            of_sums[0] += squares(others)
            if self._has_mean:
                of_sums[1] += others @ self._mean[block]
            cross.addmm_(own, others.T)
        return cross.cpu().numpy(), of_sums.cpu().numpy()

    def _multiply_roughly(self, slots: Integers, room: SingleSums) -> tuple[Floats, Floats]:
        global_units = self._global_units
        others = SumsOfOthers(global_units, self._client, slots).block()
        single, square = room.of(others)
        prior = others @ self._mean if self._has_mean else torch.zeros_like(square)
        cross = SingleProduct(len(slots))
        for block in global_units.blocks(len(slots), itemsize=4):
            cross.add(global_units.single_rows(self._client, block), single[:, block])
        return cross.double(), torch.stack([square, prior]).numpy()


def rounding(global_units: GlobalUnits, slots: int | None = None) -> float:
    """Return the relative error of products of rows and so many sums in float32.

    By default of those that are not made in blocks.
    """
    blocks = (
        [slice(0, global_units.sums.shape[1])] if slots is None else global_units.blocks(slots, 4)
    )
    longest: int = max(block.stop - block.start for block in blocks)
    return (longest + len(blocks) + 3) * _UNIT_ROUNDOFF


def roughness_pays(global_units: GlobalUnits) -> bool:
    """Return whether float32 pays, and torch's products are what the error bound assumes."""
    device, size = global_units.sums.device, global_units.sums.shape[1]
    is_ieee = device.type == "cpu" and torch.get_float32_matmul_precision() == "highest"
    return is_ieee and size >= _LONG and global_units.largest_product < _HUGE
