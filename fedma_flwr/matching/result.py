"""What a matcher is and what it returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Matching:
    """The units of several clients, matched to global units.

    Parameters
    ----------
    assignments : tuple of int arrays, shapes (L_j,)
        For every client: local unit -> global unit. No two units of one client share a
        global unit.
    units : float array, shape (L, D)
        The signatures of the global units.
    popularity : int array, shape (L,)
        How many clients use a global unit; never 0.
    objective : float
        ``sum_i |g_i|^2 / S_i``, the part of the posterior that BBP-MAP maximises (g_i and
        S_i: the global unit's natural parameters, section 1 of the PFNM paper's method).
    sweeps : int
        Sweeps really done after the first pass (the last one may have changed nothing).

    Examples
    --------
    >>> import numpy as np
    >>> from fedma_flwr.matching import BBPMAP
    >>> shared = np.random.default_rng(0).normal(size=(20, 30))
    >>> matching = BBPMAP().match([shared, shared[::-1]])
    >>> bool((matching.assignments[0] == matching.assignments[1][::-1]).all())
    True
    >>> matching.width
    20
    """

    assignments: tuple[Integers, ...]
    units: Floats
    popularity: Integers
    objective: float
    sweeps: int

    @property
    def width(self) -> int:
        """The number of global units, L."""
        return len(self.popularity)


class Matcher(Protocol):
    """Anything that maps the units of several clients to global units."""

    def match(
        self,
        units: Sequence[Floats],
        prior_mean: float | Floats | None = None,
        weights: Sequence[float] | Floats | None = None,
        orders: Sequence[Sequence[int]] | Integers | None = None,
        seed: int = 0,
    ) -> Matching:
        """Match J arrays of shape (L_j, D); see :meth:`BBPMAP.match`."""
        ...


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
