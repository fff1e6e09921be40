"""The head of a client's model: where it is, and what enters and leaves it, row by row."""

from __future__ import annotations

from torch import Tensor, nn

from fedma_flwr.protocol import ClientError
from fedma_flwr.structure.wrapped_models import submodule_at


def find_head(model: nn.Module, path: str) -> nn.Module:
    """The layer at a path, which must be linear.

    Raises
    ------
    ClientError
        If there is none, or if it is no linear layer and no 1 x 1 convolution.
    """
    try:
        layer = submodule_at(model, path)
    except AttributeError as error:
        raise ClientError(f"The model has no layer {path!r}, the strategy's head.") from error
    if isinstance(layer, nn.Linear) or _maps_single_positions(layer):
        return layer
    raise ClientError(
        f"The head {path!r} is {layer}; only a linear layer, or a 1 x 1 convolution without "
        'stride, padding and groups, can be solved: give the strategy head="trained".'
    )


def _maps_single_positions(layer: nn.Module) -> bool:
    if not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) or layer.groups != 1:
        return False
    padding = layer.padding if isinstance(layer.padding, tuple) else (0,)  # "same" pads nothing
    return set(layer.kernel_size) == set(layer.stride) == {1} and set(padding) == {0}


def as_rows(head: nn.Module, tensor: Tensor) -> Tensor:
    """The head's inputs, or outputs, one a row: (n, numbers)."""
    if not isinstance(head, nn.Linear):  # (batch, channels, ...)
        tensor = tensor.movedim(1, -1)
    return tensor.reshape(-1, tensor.shape[-1])


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside torch.compile's or DataParallel's."""
    while inner := getattr(model, "_orig_mod", None) or (
        model.module if isinstance(model, nn.DataParallel) else None
    ):
        model = inner
    return model


def count_items(inputs: Tensor) -> int:
    """The examples of a batch; each may have several positions."""
    return len(inputs) if inputs.dim() > 1 else 1
