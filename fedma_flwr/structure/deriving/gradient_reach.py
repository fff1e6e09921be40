"""Which parameters the gradient of a model's output reaches."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from fedma_flwr.structure.model_copies import call, cpu_inputs, quiet
from fedma_flwr.structure.output_tensors import tensors_in
from fedma_flwr.structure.restoring import buffers_kept, restored


def without_gradient(model: nn.Module, inputs: Any) -> set[str]:
    """The parameters that no gradient reaches, though all are asked for one.

    Parameters
    ----------
    model : nn.Module
        A private copy; its buffers, its mode and what asks for gradients are left as they were.
    inputs : tuple or dict
        Positional or keyword arguments.

    Returns
    -------
    set of str
        Their names. None if the output has no gradient at all: then it tells nothing.
    """
    own = {n: p for n, p in model.named_parameters() if p.is_floating_point() and p.is_leaf}
    asked = {name: parameter.requires_grad for name, parameter in own.items()}
    mode = model.training
    try:
        for parameter in own.values():
            parameter.requires_grad_(True)
        for training in (True, False):  # a batch of one in a batch norm runs in evaluation only
            with suppress(Exception), restored(model), buffers_kept(model):
                gradients = _gradients(model.train(training), inputs, list(own.values()))
                return {n for n, g in zip(own, gradients, strict=True) if g is None}
        return set()
    finally:
        model.train(mode)
        for name, parameter in own.items():
            parameter.requires_grad_(asked[name])


def _gradients(model: nn.Module, inputs: Any, own: list[nn.Parameter]) -> tuple[Tensor | None, ...]:
    with quiet(), torch.enable_grad():
        outputs = tensors_in(call(model, cpu_inputs(inputs)))
        return torch.autograd.grad(_total(outputs), own, allow_unused=True)


def _total(outputs: list[Tensor]) -> Tensor:
    """A number that depends on all outputs; they need not be finite."""
    return torch.stack([out.abs().double().sum() for out in outputs if out.requires_grad]).sum()
