"""A forward pass over labelled batches: what enters the head, and its targets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedma_flwr.client_heads import as_rows, count_items
from fedma_flwr.protocol import ClientError


@dataclass(frozen=True)
class SeenBatch:
    """What a batch has shown of the head.

    Parameters
    ----------
    features : Tensor
        (n, d) inputs of the head, of all positions.
    kept : Tensor
        (n,) which of them have a label.
    targets : Tensor
        (rows that have one, C) their targets.
    items : int
        Examples of the batch.
    """

    features: Tensor
    kept: Tensor
    targets: Tensor
    items: int


def passes(
    model: nn.Module,
    layer: nn.Module,
    batches: Iterable[tuple[Any, Tensor]],
    *,
    values: bool = False,
) -> Iterator[SeenBatch]:
    """Pass over batches in evaluation mode, without gradients.

    Parameters
    ----------
    model : nn.Module
        It is left in the mode that it was in.
    layer : nn.Module
        The head.
    batches : iterable of (inputs, labels)
        See `head_moments`.
    values : bool (default: False)
        Whether labels are values, and neither classes nor probabilities.

    Raises
    ------
    ClientError
        If labels are no classes of the head's, and no probabilities, or no values for its outputs.
    """
    device = next(layer.parameters()).device
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    training = model.training
    model.eval()
    try:
        for inputs, labels in batches:
            with torch.no_grad():  # not around the yield: whoever asks would be within it too
                _call(model, inputs, device)
            found = _values if values else _targets
            kept, targets = found(torch.as_tensor(labels).to(device), layer)
            features = torch.cat([as_rows(layer, rows) for rows in seen])
            yield SeenBatch(features, kept, targets, sum(map(count_items, seen)))
            seen.clear()
    finally:
        handle.remove()
        model.train(training)


def _call(model: nn.Module, inputs: Any, device: torch.device) -> None:
    if isinstance(inputs, dict):
        model(**{name: value.to(device) for name, value in inputs.items()})
    elif isinstance(inputs, tuple | list):
        model(*(value.to(device) for value in inputs))
    else:
        model(inputs.to(device))


def _values(labels: Tensor, head: nn.Module) -> tuple[Tensor, Tensor]:
    """Which rows count, all of them, and their targets, (n, C)."""
    outputs = next(head.parameters()).shape[0]
    rows = labels.reshape(-1, 1) if outputs == 1 else as_rows(head, labels)
    if rows.shape[1] != outputs or not bool(rows.isfinite().all()):
        raise ClientError(
            f"head_moments: values must be {outputs} finite numbers for each example; the shape is "
            f"{tuple(labels.shape)}."
        )
    return torch.ones(len(rows), dtype=torch.bool, device=labels.device), rows


def _targets(labels: Tensor, head: nn.Module) -> tuple[Tensor, Tensor]:
    """Which rows count, and their targets, (n, C)."""
    outputs = next(head.parameters()).shape[0]
    if labels.is_floating_point():
        rows = as_rows(head, labels)
        if rows.shape[1] != outputs or bool(((rows.sum(1) - 1).abs() > 1e-3).any()):
            raise ClientError(
                f"head_moments: labels that are no class numbers must be {outputs} probabilities "
                "each, 1 in all. If they are values that the outputs are to come near to, as with "
                'a squared error, say values=True. For others give the strategy head="trained".'
            )
        return torch.ones(len(rows), dtype=torch.bool, device=labels.device), rows
    flat = labels.reshape(-1)
    kept = flat >= 0
    if bool((flat >= outputs).any()):
        raise ClientError(
            f"head_moments: labels reach {int(flat.max())}, but the head has {outputs} outputs."
        )
    return kept, functional.one_hot(flat[kept], outputs)
