"""Large cohorts: the first clients are matched jointly, all others one by one, and let go.

So the memory does not grow with the cohort, and the time in proportion to it. As in online
variants of k-means (MacQueen, 1967), whoever comes later meets the sums of all who came before,
and may still open units of its own at the same price.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .arrays import Floats, Integers
from .memory import give_back
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


def search_all(
    search: Search, units: Sequence[Floats], anchors: Sequence[Floats], orders: Integers
) -> int:
    """Match the anchors and assign all clients behind them; return the number of sweeps done.

    Parameters
    ----------
    search : Search
        Of the anchors.
    units : sequence of J float arrays, shapes (L_j, D)
        All clients'; those behind the anchors are asked for once, one after the other.
    anchors : sequence of float arrays, shapes (L_j, D)
        The first clients' units; all clients' in a small cohort.
    orders : int array, shape (sweeps, J)
        The clients' order in every sweep.

    Raises
    ------
    ValueError
        As `check_units`, for whoever it is.
    """
    visits = orders_of_anchors(orders, len(anchors))
    done = search.run(visits)
    if len(anchors) == len(units):
        return done
    for client in range(len(anchors), len(units)):
        (own,) = check_sizes([check_client(units[client], client, anchors[0])], client)
        search.add(own)
        give_back(client)
    return done + search.sweep_again(visits[:_SWEEPS])
