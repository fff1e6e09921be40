"""Clients whose moments are out of all proportion."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch

from fedma_flwr.averaging.client_update import ClientUpdate
from fedma_flwr.averaging.head_moments import HeadMoments
from fedma_flwr.averaging.robust import lower_median

_FEW = 3  # clients of a width among which nobody can tell what is usual


def feature_size(moments: HeadMoments) -> float:
    """Root mean square of the head's inputs."""
    square = moments.square()
    inputs = max(moments.inputs, 1)
    return math.sqrt(float(square.diagonal()[:-1].sum()) / inputs / float(square[-1, -1]))


def oversized_moments(updates: Mapping[int, ClientUpdate], max_norm_ratio: float) -> dict[int, str]:
    """Clients whose head inputs are far larger than is usual, and the reason in words.

    All clients run the same settled layers, so that their inputs are of one size. Those of narrow
    clients differ: they are compared with others of their width, or, where these are less than
    three, with all clients, at `max_norm_ratio` once more.

    Parameters
    ----------
    updates : mapping of int to ClientUpdate
        What the clients sent, by node.
    max_norm_ratio : float
        How much larger than the cohort's median one client's root mean square may be.
    """
    sizes = {n: feature_size(u.moments) for n, u in updates.items() if u.moments is not None}
    of_all = lower_median(list(sizes.values()))
    inputs = {n: u.moments.inputs for n, u in updates.items() if u.moments is not None}
    usual_of = {}
    for width in set(inputs.values()):
        alike = [size for n, size in sizes.items() if inputs[n] == width]
        few = len(alike) < _FEW and len(alike) < len(sizes)
        usual_of[width] = max_norm_ratio * of_all if few else lower_median(alike)
    usual_sizes = {node: usual_of[inputs[node]] for node in sizes}
    return {
        node: f"its head inputs have size {size:.3g} (root mean square); usual is "
        f"{usual_sizes[node]:.3g}, and "
        f"at most {max_norm_ratio:g} times that (max_norm_ratio)"
        for node, size in sizes.items()
        if size > max_norm_ratio * usual_sizes[node]
    }


def at_most_usual(updates: Mapping[int, ClientUpdate]) -> dict[int, ClientUpdate]:
    """Updates without head inputs that are larger than usual: those are scaled down to it.

    All clients run the same settled layers. In a sum of squares, inputs three times as large count
    nine times as much.

    Parameters
    ----------
    updates : mapping of int to ClientUpdate
        What the clients sent, by node.
    """
    sizes = {n: feature_size(u.moments) for n, u in updates.items() if u.moments is not None}
    usual = lower_median(list(sizes.values()))
    scaled = dict(updates)
    for node, size in sizes.items():
        if size > usual:
            scaled[node] = replace(updates[node], moments=_scaled(updates[node], usual / size))
    return scaled


def _scaled(update: ClientUpdate, factor: float) -> HeadMoments | None:
    """The moments of inputs that are so many times as large."""
    moments = update.moments
    if moments is None:
        return None
    factors = torch.full((moments.inputs + 1,), factor)
    factors[-1] = 1.0  # counts
    expected = None if moments.expected is None else moments.expected * factors
    cross = moments.cross * factors
    return HeadMoments(moments.gram * factor**2, cross, expected, moments.squares)


def odd_kinds(updates: Mapping[int, ClientUpdate]) -> dict[int, str]:
    """Clients whose targets are values where most clients' are classes, or the other way round.

    Parameters
    ----------
    updates : mapping of int to ClientUpdate
        What the clients sent, by node.
    """
    values = {n: u.moments.squares is not None for n, u in updates.items() if u.moments}
    usual = 2 * sum(values.values()) > len(values)
    kinds = {True: "values (a squared error)", False: "classes (a cross-entropy)"}
    return {
        node: f"its head's targets are {kinds[own]}, those of most clients {kinds[usual]}"
        for node, own in values.items()
        if own != usual
    }


def oversized_targets(updates: Mapping[int, ClientUpdate], max_norm_ratio: float) -> dict[int, str]:
    """Clients with values to be learned that are far larger than is usual.

    All outputs together: a single one may be nearly always zero for most clients, as a pixel at the
    edge is, and not for another.

    Parameters
    ----------
    updates : mapping of int to ClientUpdate
        What the clients sent, by node.
    max_norm_ratio : float
        How much larger than the cohort's median one client's root mean square may be.
    """
    sizes = {
        node: math.sqrt(u.moments.target_square / (u.moments.examples * u.moments.outputs))
        for node, u in updates.items()
        if u.moments is not None and u.moments.squares is not None
    }
    usual = lower_median(list(sizes.values())) if sizes else 0.0
    return {
        node: f"its targets have size {size:.3g} (root mean square); usual is {usual:.3g}, and at "
        f"most {max_norm_ratio:g} times that (max_norm_ratio)"
        for node, size in sizes.items()
        if 0.0 < max_norm_ratio * usual < size
    }
