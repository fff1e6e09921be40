"""Whole numbers that clients send, such as the batches that a norm layer has seen: how far they go.

A weight that is out of all proportion shows; a count that is does not, and nobody is refused for
one. It is brought back to what the others make usual.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from fedma_flwr.averaging.client_update import ClientUpdate
from fedma_flwr.averaging.robust import lower_median


def bound_integers(
    updates: Mapping[int, ClientUpdate], model: Mapping[str, Tensor], max_ratio: float
) -> dict[int, ClientUpdate]:
    """Updates whose whole numbers have not moved much further than the cohort's median has.

    A tensor moves by the largest difference from the last global model; one of another shape, by
    its largest number. The numbers of a client that moved further than `max_ratio` times the
    median (at least 1) are cut at that. Counts, which are negative nowhere else, are cut at 0. What
    is within it stays as it is, bit for bit.

    Parameters
    ----------
    updates : mapping of int to ClientUpdate
        What the clients sent, by node.
    model : mapping of str to Tensor
        The last global model.
    max_ratio : float
        ``max_norm_ratio`` of `Limits`.
    """
    bounded = dict(updates)
    names = next(iter(updates.values())).tensors if updates else ()
    for name in names:
        if model[name].dtype.is_floating_point or model[name].dtype.is_complex:
            continue
        sent = {node: update.tensors[name] for node, update in updates.items()}
        start = model[name]
        if any(tensor.shape != start.shape for tensor in sent.values()):
            start = torch.zeros((), dtype=start.dtype)
        moved = {node: _distance(tensor, start) for node, tensor in sent.items()}
        most = max_ratio * max(lower_median(list(moved.values())), 1.0)
        counts = _are_counts(start, list(sent.values()))
        for node, tensor in sent.items():
            cut = _cut(tensor, start, most) if moved[node] > most else tensor
            cut = cut.clamp_min(0) if counts and cut.dtype.is_signed else cut
            if not torch.equal(cut, tensor):
                tensors = {**bounded[node].tensors, name: cut}
                bounded[node] = replace(bounded[node], tensors=tensors)
    return bounded


def _distance(tensor: Tensor, start: Tensor) -> float:
    """In float64: differences of whole numbers may be beyond their own type."""
    return float((tensor.double() - start.double()).abs().max()) if tensor.numel() else 0.0


def _are_counts(start: Tensor, sent: list[Tensor]) -> bool:
    """Whether the last model and most clients have nothing negative: layers divide by it."""
    least = [float(tensor.min()) for tensor in (start, *sent) if tensor.numel()]
    return bool(least) and least[0] >= 0.0 and lower_median(least) >= 0.0


def _cut(tensor: Tensor, start: Tensor, most: float) -> Tensor:
    wanted = start.double() + (tensor.double() - start.double()).clamp(-most, most)
    return wanted.round().to(tensor.dtype)
