"""Sums over a client's examples of what enters the head, and of its targets."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedma_flwr import protocol
from fedma_flwr.averaging.head_moments import upper_triangle


class Reference:
    """A head as the server has sent it.

    Parameters
    ----------
    head : nn.Module
        A linear layer or a 1 x 1 convolution.
    """

    def __init__(self, head: nn.Module) -> None:
        tensors = {name: p.detach().clone() for name, p in head.named_parameters(recurse=False)}
        self._weight = tensors["weight"].flatten(1)  # (C, d)
        self._bias = tensors.get("bias")

    def probabilities(self, features: Tensor) -> Tensor:
        """What it expects of (n, d) inputs: (n, C), 1 in each row."""
        logits = features @ self._weight.to(features).T
        if self._bias is not None:
            logits = logits + self._bias.to(features)
        return logits.softmax(1)


class MomentSums:
    """Moments of a head's inputs and targets, batch by batch.

    Parameters
    ----------
    reference : Reference, optional
        The head whose expectations are summed up as well.
    values : bool (default: False)
        Whether targets are values, of which the squares are summed up too, and no classes.

    Attributes
    ----------
    rows : int
        What was added so far; an example has one row for each position that the head maps.
    """

    def __init__(self, reference: Reference | None = None, *, values: bool = False) -> None:
        self.rows = 0
        self._reference = None if values else reference
        self._values = values
        self._squares = torch.zeros(0)  # (C,), float64
        self._expected = torch.zeros(0, 0)  # (C, d + 1), float64
        self._items = 0
        self._gram = torch.zeros(0, 0)  # (d, d), float64
        self._cross = torch.zeros(0, 0)  # (C, d + 1), float64

    def add(self, features: Tensor, targets: Tensor, items: int) -> None:
        """Add n rows of so many examples: (n, d) inputs of the head and (n, C) targets."""
        features = features.detach().to(_summed_in(features))
        targets = targets.to(features)
        if self._values:
            squares = targets.to(precise(targets)).square().sum(0).cpu().to(torch.float64)
            self._squares = squares + (self._squares if self.rows else 0.0)
            targets = torch.cat([targets, torch.ones_like(targets[:, :1])], 1)
        gram, cross = (features.T @ features).cpu(), _by_class(targets, features)
        if not self.rows:
            self._gram = torch.zeros_like(gram, dtype=torch.float64)
            self._cross = torch.zeros_like(cross, dtype=torch.float64)
            self._expected = torch.zeros_like(self._cross)
        self._gram.add_(gram)  # batches are added up in float64
        self._cross.add_(cross)
        if self._reference is not None:
            self._expected.add_(_by_class(self._reference.probabilities(features), features))
        self.rows += len(features)
        self._items += items

    def moments(self) -> dict[str, Tensor]:
        """Those of an average example, float32: ``head.gram`` and ``head.cross``.

        With a reference head ``head.expected`` as well, with values ``head.squares``. Several
        passes over the same examples only repeat the sums.
        """
        gram = upper_triangle(self._gram / self._items)
        tensors = {protocol.GRAM_KEY: gram, protocol.CROSS_KEY: self._cross / self._items}
        if self._reference is not None:
            tensors[protocol.EXPECTED_KEY] = self._expected / self._items
        if self._values:
            tensors[protocol.SQUARES_KEY] = self._squares / self._items
        return {name: tensor.to(torch.float32) for name, tensor in tensors.items()}


def _by_class(targets: Tensor, features: Tensor) -> Tensor:
    """``sum y [phi, 1]^T``, (C, d + 1)."""
    return torch.cat([targets.T @ features, targets.sum(0)[:, None]], 1).cpu()


def precise(tensor: Tensor) -> torch.dtype:
    """The most precise dtype that a tensor's device has."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def _summed_in(tensor: Tensor) -> torch.dtype:
    """The dtype of a batch's products: on GPUs, float32 may be rounded to ten bits (TF32)."""
    if tensor.device.type == "cpu" and tensor.dtype != torch.float64:
        return torch.float32
    return precise(tensor)
