"""Propose a spec: capture a model, propagate its axes, pin what constants tell apart."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from fedma_flwr.structure.axes import UnsupportedModelError
from fedma_flwr.structure.deriving.atoms import Axes, fixed, free, pin
from fedma_flwr.structure.deriving.capturing import capture, statistics_of
from fedma_flwr.structure.deriving.capturing_runs import capture_run, looks_at_values
from fedma_flwr.structure.deriving.propagation import Propagation
from fedma_flwr.structure.deriving.run_digests import run_digest
from fedma_flwr.structure.deriving.spec_building import build_spec
from fedma_flwr.structure.deriving.trace import Trace
from fedma_flwr.structure.deriving.twins import unite_twins
from fedma_flwr.structure.model_copies import Inputs, cpu_examples, private_copy, tensors_of
from fedma_flwr.structure.not_reached import FROZEN, NOT_REACHED
from fedma_flwr.structure.spec import PermutationSpec

_LOG = logging.getLogger("flwr")  # where users of Flower look
_BRANCHES = (
    "What %s does depends on values (%s). The ways that it takes for the example inputs, and for "
    "some others of their shapes, are followed; another one is not promised. To have it proven, "
    "add inputs that take it: example_inputs=[(x,), (other,)]."
)
# Inputs of these sizes, and weights in another order, are tried where the code looks at values.
_SCALES = (1.0, 1.0, 0.0, 0.01, 3.0, 3.0, 10.0, 100.0)


def propose_spec(model: nn.Module, example_inputs: Inputs) -> PermutationSpec:
    """Derive the spec of a model without proving it: all groups are taken to be growable.

    Parameters and errors are those of `derive_spec`. The model may be on the meta device.
    """
    twin = private_copy(model, example_inputs)
    examples = cpu_examples(example_inputs)
    state = tensors_of(twin)
    parameters = {name for name, _ in twin.named_parameters(remove_duplicate=False)}
    names = {name: next(other for other in state if state[other] is state[name]) for name in state}
    trace = Trace(
        state={name: _new_axes(state[name]) for name in names.values()},
        names=names,
        buffers=frozenset(state.keys() - parameters),
    )
    for number, inputs in enumerate(examples):
        with _numbered(number if len(examples) > 1 else None):
            _follow(twin.eval(), inputs, trace)
        with suppress(UnsupportedModelError):  # a batch of one in a batch norm, for example
            _follow(twin.train(), inputs, trace)
    twins = unite_twins(twin, examples, trace)
    moving = set[str]().union(*(statistics_of(twin, inputs) for inputs in examples))
    _pin_constants(trace, twins | moving, tensors_of(twin))
    for name, parameter in twin.named_parameters():
        if not trace.is_used(name):  # it is unknown how they follow their units
            for axis in trace.axes_of(name):
                pin(axis, NOT_REACHED if parameter.requires_grad else FROZEN)
    return build_spec(trace)


@contextmanager
def _numbered(number: int | None) -> Iterator[None]:
    """Errors say which of several examples they are about."""
    try:
        yield
    except UnsupportedModelError as error:
        if number is None:
            raise
        raise UnsupportedModelError(f"example_inputs[{number}]: {error}") from error


def _follow(model: nn.Module, inputs: Any, trace: Trace) -> None:
    """Propagate through what a model does in its mode; also for other values if it looks at any."""
    captured = capture(model, inputs)
    Propagation(captured, trace).run()
    looks = looks_at_values(captured)
    if looks is None:
        return
    if not model.training:
        _LOG.info(_BRANCHES, type(model).__name__, looks)
    generator = torch.Generator().manual_seed(0)
    with _weights_kept(model) as weights:
        ways = set[str]()
        with suppress(Exception):
            ways.add(run_digest(model, inputs))
        for scale in _SCALES:
            for weight in weights:
                weight.copy_(weight.flatten()[_order(weight, generator)].view_as(weight))
            others = tree_map(partial(_scaled, scale, generator), inputs)
            with suppress(Exception):  # a way that these values cannot take
                if (way := run_digest(model, others)) not in ways:
                    Propagation(capture_run(model, others), trace).run()
                    ways.add(way)  # to capture a way takes much longer than to know it again


def _order(weight: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randperm(weight.numel(), generator=generator)


@contextmanager
def _weights_kept(model: nn.Module) -> Iterator[list[Tensor]]:
    """A model's parameters as tensors to write to; they have their values again afterwards."""
    weights = [parameter.detach() for parameter in model.parameters()]
    before = [weight.clone() for weight in weights]
    try:
        yield weights
    finally:
        for weight, values in zip(weights, before, strict=True):
            weight.copy_(values)


def _scaled(scale: float, generator: torch.Generator, value: Any) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return scale * torch.randn(value.shape, generator=generator, dtype=value.dtype)


def _new_axes(tensor: Tensor) -> Axes:
    if tensor.is_floating_point() or tensor.is_complex():
        return tuple(free(length) for length in tensor.shape)
    return tuple(fixed(length, "meets a buffer of integers") for length in tensor.shape)


def _pin_constants(trace: Trace, statistics: Set[str], values: Mapping[str, Tensor]) -> None:
    """Pin what buffers that training does not change tell apart: masks, slopes, frequencies.

    To permute them with their units would leave one model's function as it is; but units that
    differ by constants of the code must not be matched, and their constants not be averaged.
    """
    for name in sorted((trace.buffers & trace.state.keys()) - statistics):
        for dim, axis in enumerate(trace.state[name]):
            if not _is_uniform(values[name], dim):
                pin(axis, f"the constants in {name!r} tell its positions apart")


def _is_uniform(tensor: Tensor, dim: int) -> bool:
    """Whether a tensor has the same entries at all positions along an axis."""
    if tensor.is_meta or tensor.shape[dim] < 2:
        return not tensor.is_meta
    return bool((tensor == tensor.narrow(dim, 0, 1)).all())
