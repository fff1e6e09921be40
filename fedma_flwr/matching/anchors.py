"""Large cohorts: the first clients are matched jointly, all others one by one, and let go.

So the memory does not grow with the cohort, and the time in proportion to it. As in online
variants of k-means (MacQueen, 1967), whoever comes later meets the sums of all who came before,
and may still open units of its own at the same price.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .arrays import Floats, Integers
from .search import Search
from .validate import check_client, check_sizes

_SWEEPS = 2  # over the anchors, once all others are there


def orders_of_anchors(orders: Integers, anchors: int) -> Integers:
    """Return the order of the first clients in every sweep.

    Parameters
    ----------
    orders : int array, shape (sweeps, J)
    anchors : int
        How many clients come first.

    Returns
    -------
    int array, shape (sweeps, anchors)
    """
    return np.array([order[order < anchors] for order in orders], dtype=np.int64).reshape(
        len(orders), anchors
    )


def assign_others(
    search: Search, units: Sequence[Floats], first: Floats, anchors: int, orders: Integers
) -> int:
    """Assign all clients behind the anchors; return the number of sweeps done after it.

    Parameters
    ----------
    search : Search
        Which has matched the anchors.
    units : sequence of J float arrays, shapes (L_j, D)
        All clients'; those behind the anchors are asked for once, one after the other.
    first : float array, shape (L_0, D)
        The first client's units, for errors.
    anchors : int
        How many clients are matched already.
    orders : int array, shape (sweeps, anchors)
        The anchors' order in every sweep.

    Raises
    ------
    ValueError
        As `check_units`, for whoever it is.
    """
    for client in range(anchors, len(units)):
        (own,) = check_sizes([check_client(units[client], client, first)], client)
        search.add(own)
    return search.sweep_again(orders[:_SWEEPS])
