"""Run a model in training mode as a function: no dropout, no change to its statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_DROPOUTS = frozenset(
    {
        functional.dropout,
        functional.dropout1d,
        functional.dropout2d,
        functional.dropout3d,
        functional.alpha_dropout,
        functional.feature_alpha_dropout,
        torch.dropout,
        torch.feature_dropout,
        torch.alpha_dropout,
        torch.feature_alpha_dropout,
    }
)

_DROPOUT_PLACE = 4  # of `dropout_p` among the arguments of an attention


class _NoDropout(TorchFunctionMode):
    """Functions that drop units at random return their input."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        if func in _DROPOUTS:
            return args[0] if args else options["input"]
        if func is functional.scaled_dot_product_attention:
            if len(args) > _DROPOUT_PLACE:
                args = (*args[:_DROPOUT_PLACE], 0.0, *args[_DROPOUT_PLACE + 1 :])
            else:
                options["dropout_p"] = 0.0
        return func(*args, **options)


@contextmanager
def training_mode(model: nn.Module) -> Iterator[None]:
    """Training mode without dropout; buffers, mode and attributes are restored.

    Parameters
    ----------
    model : nn.Module
        The model to run inside the context.
    """
    modes = [(module, module.training) for module in model.modules()]
    rates = [
        (module, module.dropout)
        for module in model.modules()
        if isinstance(module, nn.RNNBase | nn.MultiheadAttention)
    ]
    # The run gets buffers of its own: writing the old values back would spoil its derivatives.
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    for module, own in buffers:
        module._buffers.update({k: None if b is None else b.clone() for k, b in own.items()})
    model.train()
    for layer, _ in rates:
        layer.dropout = 0.0
    try:
        with _NoDropout():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for layer, rate in rates:
            layer.dropout = rate
        for module, own in buffers:
            module._buffers.update(own)
