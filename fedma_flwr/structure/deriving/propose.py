"""Propose a spec: capture a model, propagate its axes, pin what constants tell apart."""

from __future__ import annotations

from collections.abc import Mapping, Set

from torch import Tensor, nn

from fedma_flwr.structure.axes import UnsupportedModelError
from fedma_flwr.structure.deriving.atoms import Axes, fixed, free, pin
from fedma_flwr.structure.deriving.capturing import capture, statistics_of
from fedma_flwr.structure.deriving.propagation import Propagation
from fedma_flwr.structure.deriving.spec_building import build_spec
from fedma_flwr.structure.deriving.trace import Trace
from fedma_flwr.structure.model_copies import Inputs, cpu_inputs, private_copy
from fedma_flwr.structure.not_reached import FROZEN, NOT_REACHED
from fedma_flwr.structure.spec import PermutationSpec


def propose_spec(model: nn.Module, example_inputs: Inputs) -> PermutationSpec:
    """Derive the spec of a model without proving it: all groups are taken to be growable.

    Parameters and errors are those of `derive_spec`. The model may be on the meta device.
    """
    twin = private_copy(model, example_inputs)
    inputs = cpu_inputs(example_inputs)
    state = twin.state_dict(keep_vars=True)
    names = {name: next(other for other in state if state[other] is state[name]) for name in state}
    trace = Trace(
        state={name: _new_axes(state[name]) for name in names.values()},
        names=names,
        buffers=frozenset(n for n, t in state.items() if not isinstance(t, nn.Parameter)),
    )
    Propagation(capture(twin.eval(), inputs), trace).run()
    try:
        training = capture(twin.train(), inputs)
    except UnsupportedModelError:
        training = None  # a batch of one in a batch norm, for example
    if training is not None:
        Propagation(training, trace).run()
    _pin_constants(trace, statistics_of(twin, inputs), twin.state_dict())
    for name, parameter in twin.named_parameters():
        if not trace.is_used(name):  # it is unknown how they follow their units
            for axis in trace.axes_of(name):
                pin(axis, NOT_REACHED if parameter.requires_grad else FROZEN)
    return build_spec(trace)


def _new_axes(tensor: Tensor) -> Axes:
    if tensor.is_floating_point() or tensor.is_complex():
        return tuple(free(length) for length in tensor.shape)
    return tuple(fixed(length, "meets a buffer of integers") for length in tensor.shape)


def _pin_constants(trace: Trace, statistics: Set[str], values: Mapping[str, Tensor]) -> None:
    """Pin what buffers that training does not change tell apart: masks, slopes, frequencies.

    To permute them with their units would leave one model's function as it is; but units that
    differ by constants of the code must not be matched, and their constants not be averaged.
    """
    for name in (trace.buffers & trace.state.keys()) - statistics:
        for dim, axis in enumerate(trace.state[name]):
            if not _is_uniform(values[name], dim):
                pin(axis, f"the constants in {name!r} tell its positions apart")


def _is_uniform(tensor: Tensor, dim: int) -> bool:
    """Whether a tensor has the same entries at all positions along an axis."""
    if tensor.is_meta or tensor.shape[dim] < 2:
        return not tensor.is_meta
    return bool((tensor == tensor.narrow(dim, 0, 1)).all())
