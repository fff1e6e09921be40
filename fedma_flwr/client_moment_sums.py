"""Sums over a client's examples of what enters the head, and of its targets."""

from __future__ import annotations

import torch
from torch import Tensor

from fedma_flwr import protocol
from fedma_flwr.averaging.head_moments import upper_triangle


class MomentSums:
    """Moments of a head's inputs and targets, batch by batch.

    Attributes
    ----------
    rows : int
        What was added so far; an example has one row for each position that the head maps.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._items = 0
        self._gram = torch.zeros(0, 0)  # (d, d), float64
        self._cross = torch.zeros(0, 0)  # (C, d + 1), float64

    def add(self, features: Tensor, targets: Tensor, items: int) -> None:
        """Add n rows of so many examples: (n, d) inputs of the head and (n, C) targets."""
        features = features.detach().to(_summed_in(features))
        targets = targets.to(features)
        gram = (features.T @ features).cpu()
        cross = torch.cat([targets.T @ features, targets.sum(0)[:, None]], 1).cpu()
        if not self.rows:
            self._gram = torch.zeros_like(gram, dtype=torch.float64)
            self._cross = torch.zeros_like(cross, dtype=torch.float64)
        self._gram.add_(gram)  # batches are added up in float64
        self._cross.add_(cross)
        self.rows += len(features)
        self._items += items

    def moments(self) -> dict[str, Tensor]:
        """Those of an average example, float32: ``head.gram`` and ``head.cross``.

        Several passes over the same examples only repeat the sums.
        """
        gram = upper_triangle(self._gram / self._items)
        tensors = {protocol.GRAM_KEY: gram, protocol.CROSS_KEY: self._cross / self._items}
        return {name: tensor.to(torch.float32) for name, tensor in tensors.items()}


def precise(tensor: Tensor) -> torch.dtype:
    """The most precise dtype that a tensor's device has."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def _summed_in(tensor: Tensor) -> torch.dtype:
    """The dtype of a batch's products: on GPUs, float32 may be rounded to ten bits (TF32)."""
    if tensor.device.type == "cpu" and tensor.dtype != torch.float64:
        return torch.float32
    return precise(tensor)
