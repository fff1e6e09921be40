"""Class counts in a client's reply, and the heads that they are about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from logging import WARNING
from typing import Any

import torch
from flwr.supercore import log
from torch import Tensor

from fedma_flwr.protocol import CLASS_COUNTS_KEY, CLASS_COUNTS_OF
from fedma_flwr.server.reply_errors import ReplyError
from fedma_flwr.server.reply_metrics import MAX_COUNT
from fedma_flwr.structure import PermutationSpec
from fedma_flwr.structure.output_heads import head_layers, tensors_of_head


@dataclass(frozen=True)
class ReadCounts:
    """The class counts of a reply.

    Parameters
    ----------
    plain : Tensor or None
        (outputs,) those of a model with one head.
    by_tensor : dict of str to Tensor
        By tensor of the head, those that named theirs.
    """

    plain: Tensor | None
    by_tensor: dict[str, Tensor]


def read_counts(
    metrics: Mapping[str, Any], spec: PermutationSpec, *, several_heads: bool
) -> ReadCounts:
    """Read ``class-counts`` and ``class-counts.NAME``.

    Where there are several heads, counts without a name belong to none: as many numbers as a layer
    has outputs do not make it a classifier.

    Raises
    ------
    ReplyError
        If counts are no list of numbers, if they name no head, or if they do not fit theirs.
    """
    plain = metrics.get(CLASS_COUNTS_KEY)
    counts = None if plain is None else _as_counts(CLASS_COUNTS_KEY, plain)
    by_tensor: dict[str, Tensor] = {}
    for key in sorted(key for key in metrics if key.startswith(CLASS_COUNTS_OF)):
        by_tensor |= _of_head(key, _as_counts(key, metrics[key]), spec)
    return ReadCounts(None if several_heads else counts, by_tensor)


def _as_counts(key: str, value: Any) -> Tensor:
    if not isinstance(value, list) or not all(0 <= n <= MAX_COUNT for n in value):
        raise ReplyError(f"{key!r} must be a list, for each output a number from 0 to 2**53")
    return torch.tensor(value, dtype=torch.float64)


def _of_head(key: str, counts: Tensor, spec: PermutationSpec) -> dict[str, Tensor]:
    name = key.removeprefix(CLASS_COUNTS_OF)
    tensors = tensors_of_head(spec, name)
    if not tensors:
        raise ReplyError(
            f"{key!r} names no head of the model; its heads are {', '.join(head_layers(spec))}"
        )
    shapes = spec.shapes()
    for tensor in tensors:
        outputs = shapes[tensor][spec.output_axis(tensor)] if shapes[tensor] else len(counts)
        if outputs != len(counts):
            raise ReplyError(f"{key!r} has {len(counts)} counts; {tensor!r} has {outputs} outputs")
    return dict.fromkeys(tensors, counts)


def warn_of_unnamed_counts(spec: PermutationSpec, metrics: Iterable[Mapping[str, Any]]) -> None:
    """Log that class counts without a name belong to none of several heads, if any came."""
    if any(CLASS_COUNTS_KEY in own for own in metrics):
        layers = head_layers(spec)
        log(
            WARNING,
            "%r is not used: the model has several heads (%s), averaged by examples. Send the "
            "counts of a classifier as %r.",
            CLASS_COUNTS_KEY,
            ", ".join(layers),
            CLASS_COUNTS_OF + layers[0],
        )
