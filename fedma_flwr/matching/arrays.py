"""Arrays of units: their types, and means over several clients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Integers = NDArray[np.int64]


class UnitsOnDemand(Sequence[Floats]):
    """Units of many clients: each client's are made when they are asked for, and not kept.

    Parameters
    ----------
    widths : sequence of J int
        How many units each client has.
    make : callable
        Takes a client's index and returns its units, a float array of shape (L_j, D).

    Examples
    --------
    >>> units = UnitsOnDemand([2, 3], lambda client: np.full((2 + client, 4), client, float))
    >>> len(units), units.widths, units[1].shape
    (2, (2, 3), (3, 4))
    """

    def __init__(self, widths: Sequence[int], make: Callable[[int], Floats]) -> None:
        self.widths, self._make = tuple(widths), make

    def __len__(self) -> int:
        return len(self.widths)

    @overload
    def __getitem__(self, client: int) -> Floats: ...

    @overload
    def __getitem__(self, client: slice) -> list[Floats]: ...

    def __getitem__(self, client: int | slice) -> Floats | list[Floats]:
        clients = range(len(self))[client]  # an index beyond the last one raises here
        return self._make(clients) if isinstance(clients, int) else [self._make(k) for k in clients]

    def __iter__(self) -> Iterator[Floats]:
        return (self._make(client) for client in range(len(self)))


def widths_of(units: Sequence[Floats]) -> tuple[int, ...]:
    """Return how many units each client has, without making any."""
    return units.widths if isinstance(units, UnitsOnDemand) else tuple(map(len, units))


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
