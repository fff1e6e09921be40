"""Arrays of units: their types, and means over several clients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Integers = NDArray[np.int64]


def average_members(
    units: Sequence[Floats],
    assignments: Sequence[Integers],
    width: int,
    weights: Floats | None = None,
) -> Floats:
    """Return the (weighted) mean of every global unit's members.

    Parameters
    ----------
    units : sequence of J float arrays, shapes (L_j, D)
    assignments : sequence of J int arrays, shapes (L_j,)
    width : int
        The number of global units, L.
    weights : float array, shape (J,), or None
        One weight a client; None: all equal.

    Returns
    -------
    float64 array, shape (L, D)
    """
    total = np.zeros((width, units[0].shape[1]))
    mass = np.zeros(width)
    for client, (rows, assignment) in enumerate(zip(units, assignments, strict=True)):
        weight = 1.0 if weights is None else float(weights[client])
        # Within one client the targets are distinct, so += meets every row once.
        total[assignment] += rows if weight == 1.0 else weight * rows
        mass[assignment] += weight
    return total / mass[:, None]


def mean_row(units: Sequence[Floats]) -> Floats:
    """Return the mean of all clients' rows, float64, shape (D,), without copying them."""
    total = np.zeros(units[0].shape[1])
    for array in units:
        total += array.sum(0)
    mean: Floats = total / sum(len(array) for array in units)
    return mean
