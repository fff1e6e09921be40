"""Draw weights, statistics and inputs on which a model's output depends on all its units.

A freshly built model often does not: zero-initialised scales switch branches off, statistics that
do not fit saturate what follows, biases are all alike, example inputs are all zero.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from fedma_flwr.structure.axes import SpecError
from fedma_flwr.structure.model_copies import Example
from fedma_flwr.structure.proving.model_in_proof import ModelInProof, Outputs
from fedma_flwr.structure.proving.norm_statistics import fit_statistics, has_statistics

_GAINS = (1.4, 1.0, 2.0, 1.4)
ATTEMPTS = len(_GAINS)


def redraw(model: ModelInProof, attempt: int, generator: torch.Generator) -> Outputs | None:
    """Draw new tensors and inputs in place.

    Parameters
    ----------
    model : ModelInProof
        The model in proof.
    attempt : int
        Each attempt draws in another way; the second keeps the model's own weights, nearly.
    generator : torch.Generator
        Where randomness comes from.

    Returns
    -------
    list of Tensor or None
        The output for what was drawn; None if the model does not run on it, or if no entry of an
        output is finite.
    """
    draw_anew(model, attempt, generator)
    output = _fitted_output(model, attempt, generator)
    if output is None:
        model.inputs = model.examples
        output = _fitted_output(model, attempt, generator)
    return output


def draw_anew(model: ModelInProof, attempt: int, generator: torch.Generator) -> None:
    """Draw as `redraw`, without a run; running statistics do not fit yet."""
    for name, tensor in model.tensors.items():
        if name in model.tied:
            continue
        tensor.copy_(_draw(model, name, attempt, generator))
    model.inputs = draw_inputs(model, model.examples, attempt, generator)


def _fitted_output(model: ModelInProof, attempt: int, generator: torch.Generator) -> Outputs | None:
    try:
        if needs_fitting(model, attempt):
            fit_statistics(model, generator)
        return output_of(model)
    except SpecError:
        return None


def needs_fitting(model: ModelInProof, attempt: int) -> bool:
    """Whether there are running statistics, and not the model's own weights that they fit to."""
    return attempt != 1 and any(map(has_statistics, model.module.modules()))


def output_of(model: ModelInProof) -> Outputs | None:
    """The output; None if no entry of one of its tensors is finite.

    Raises
    ------
    SpecError
        If the model does not run.
    """
    outputs = model.run()
    finite = (not out.is_floating_point() or bool(out.isfinite().any()) for out in outputs)
    return outputs if all(finite) else None


def _draw(model: ModelInProof, name: str, attempt: int, generator: torch.Generator) -> Tensor:
    own: Tensor = model.original[name].to(model.tensors[name])
    if not (own.is_floating_point() or own.is_complex()) or not _is_drawn(model, name):
        return own

    def noise() -> Tensor:
        return torch.randn(own.shape, generator=generator, dtype=own.dtype)

    if own.is_complex() or attempt == 1:
        return own + _step(own, noise())
    if name in model.spec.variances:
        return noise().abs().clamp(0.5, 1.5)
    if own.numel() == max(own.shape, default=1):
        return _draw_vector(own, noise())
    scale = _GAINS[attempt] / math.sqrt(_fan_in(model, name))
    if attempt == 0 and (spread := float(own.std())) > 0:
        return own * (scale / spread)  # random already, and large ones take long to draw
    drawn = noise() * scale
    return drawn.abs() if attempt == 2 else drawn


def _step(own: Tensor, noise: Tensor) -> Tensor:
    """A small step from a tensor's own values."""
    step: Tensor = noise * 0.1 * (float(own.std()) if own.numel() > 1 else 0.1)
    return step


def _draw_vector(own: Tensor, noise: Tensor) -> Tensor:
    """Biases around 0, scales around what they are, temperatures near what they are."""
    if own.numel() == 1:
        return own * (1 + 0.1 * noise)
    mean = float(own.mean())
    drawn = 0.25 * noise.clamp(-2, 2)
    return drawn + mean if abs(mean) > 0.5 else drawn


def _is_drawn(model: ModelInProof, name: str) -> bool:
    """Parameters, and buffers that follow units; other buffers may be constants of the code."""
    return name in model.parameters or bool(model.spec.tensor_groups(name))


def _fan_in(model: ModelInProof, name: str) -> float:
    tensor = model.tensors[name]
    return max(tensor.numel() / tensor.shape[model.spec.output_axis(name)], 1)


def draw_inputs(
    model: ModelInProof, examples: list[Example], attempt: int, generator: torch.Generator
) -> list[Example]:
    """Inputs of the same shapes, with values that are drawn."""
    drawn: list[Example] = tree_map(
        lambda value: _draw_input(model, value, attempt, generator), examples
    )
    return drawn


def _draw_input(model: ModelInProof, value: Any, attempt: int, generator: torch.Generator) -> Any:
    if not isinstance(value, Tensor) or value.dtype == torch.bool or value.is_complex():
        return value
    if value.is_floating_point():
        drawn = torch.randn(value.shape, generator=generator, dtype=value.dtype)
        return drawn.abs() if attempt == 2 else drawn
    if value.numel() and int(value.max()) == 1:
        return value  # a mask, or segments: other numbers would make no sense
    tables = [m.num_embeddings for m in model.module.modules() if isinstance(m, nn.Embedding)]
    high = max(min(tables, default=0), int(value.max()) + 1 if value.numel() else 1)
    return torch.randint(0, high, value.shape, generator=generator, dtype=value.dtype)


def with_another_batch(inputs: Any, more: int = 1) -> Any:
    """Inputs with more entries along the first axis of every tensor: copies of the first one."""

    def widen(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.dim():
            return value
        return torch.cat([value, *[value[:1]] * more])

    return tree_map(widen, inputs)
