"""Clients whose moments are out of all proportion, or contradict everybody else's."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from fedma_flwr.averaging.client_update import ClientUpdate
from fedma_flwr.averaging.head_moments import HeadMoments, sum_moments
from fedma_flwr.averaging.ridge_regression import solve_head
from fedma_flwr.averaging.robust import lower_median

#: Squared error, an example, of the head that all others make. It is 1 where that head knows
#: nothing of a client's classes, about 1.4 where it spreads over others, and 2 where it is sure of
#: another class for each example: where labels were exchanged.
MOST_CONTRARY = 1.5


def feature_size(moments: HeadMoments) -> float:
    """Root mean square of the head's inputs."""
    square = moments.square()
    inputs = max(moments.inputs, 1)
    return math.sqrt(float(square.diagonal()[:-1].sum()) / inputs / float(square[-1, -1]))


def oversized_moments(updates: Mapping[int, ClientUpdate], max_norm_ratio: float) -> dict[int, str]:
    """Clients whose head inputs are far larger than is usual, and the reason in words.

    All clients run the same settled layers, so that their inputs are of one size.

    Parameters
    ----------
    updates : mapping of int to ClientUpdate
        What the clients sent, by node.
    max_norm_ratio : float
        How much larger than the cohort's median one client's root mean square may be.
    """
    sizes = {n: feature_size(u.moments) for n, u in updates.items() if u.moments is not None}
    usual = lower_median(list(sizes.values()))
    return {
        node: f"its head inputs have size {size:.3g} (root mean square); usual is {usual:.3g}, and "
        f"at most {max_norm_ratio:g} times that (max_norm_ratio)"
        for node, size in sizes.items()
        if size > max_norm_ratio * usual
    }


def contrary_moments(updates: Mapping[int, ClientUpdate]) -> dict[int, str]:
    """Clients for whose examples the head of all others is wrong throughout, and the reason.

    One head is solved a client. A client that alone has some classes is not refused: the others'
    head knows nothing of them, which is less wrong than the contrary.

    Parameters
    ----------
    updates : mapping of int to ClientUpdate
        What the clients sent, by node.
    """
    given = {n: (u.moments, u.examples) for n, u in updates.items() if u.moments is not None}
    found = {}
    for node, (own, _) in given.items():
        others = [pair for other, pair in given.items() if other != node]
        if not others:
            continue
        error = _error_of_others(own, sum_moments(*map(list, zip(*others, strict=True))))
        if error > MOST_CONTRARY:
            found[node] = (
                f"its moments contradict all others': squared error {error:.2f} an example; at "
                f"most {MOST_CONTRARY} is allowed with a robust `averaging`"
            )
    return found


def _error_of_others(own: HeadMoments, others: HeadMoments) -> float:
    """Mean of ``|y - W [phi, 1]|^2`` over a client's examples, by its moments alone."""
    weight, bias = solve_head(others, bias=True, regularisation=0.01)
    full = weight if bias is None else torch.cat([weight, bias[:, None]], 1)  # (C, d + 1)
    fitted = (full @ own.square() * full).sum()
    agreed = (full * own.cross.to(full)).sum()
    # Targets are 0 and 1, or between, so that the sum of their squares is at most the examples'.
    return float(1.0 + (fitted - 2.0 * agreed) / own.examples)
