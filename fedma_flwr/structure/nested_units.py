"""Signatures of units that hold other units in an unknown order: heads, groups of channels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Directions that what is inside a unit is looked at from.
_DIRECTIONS = 64
_SEED = 0


def sorted_rows(blocks: list[Tensor], size: int) -> Tensor:
    """Rows that do not depend on the order of the inner units.

    Parameters
    ----------
    blocks : list of Tensor
        Each (units, inner units, values...): all with the same inner units, in the same order.
    size : int
        How many inner units to describe; where there are more or fewer, those in between.

    Returns
    -------
    Tensor
        (units, size x 64). The values of the inner units, seen from 64 random directions (the same
        for everyone) and sorted in each. Squared distances of two rows are those of the two sets of
        inner units, put in the best order for each direction (sliced Wasserstein distance; Rabin et
        al., 2011): never more than with the best order of all, zero for the same set, and with one
        inner unit the usual ones on average.
    """
    values = torch.cat([block.flatten(2) for block in blocks], dim=2)
    generator = torch.Generator().manual_seed(_SEED)
    shape = (values.shape[2], _DIRECTIONS)
    directions = torch.randn(shape, generator=generator, dtype=torch.float64).to(values)
    seen = (values @ directions / math.sqrt(_DIRECTIONS)).sort(dim=1).values
    if seen.shape[1] != size:
        places = torch.linspace(0, seen.shape[1] - 1, size).round().to(torch.int64)
        seen = seen.index_select(1, places.to(seen.device))
    return seen.flatten(1)
