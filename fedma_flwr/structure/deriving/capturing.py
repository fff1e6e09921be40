"""Capture a model's computation as a graph of ATen operators, without touching the model."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, OutputKind

from fedma_flwr.structure.deriving.captured import Captured
from fedma_flwr.structure.deriving.capturing_runs import capture_run
from fedma_flwr.structure.model_copies import call, quiet
from fedma_flwr.structure.refusals import first_line, unsupported
from fedma_flwr.structure.restoring import restored

_REASONS = {
    InputKind.BUFFER: "meets a buffer that the state dict lacks",
    InputKind.CONSTANT_TENSOR: "meets a constant of the code",
}


def capture(model: nn.Module, inputs: tuple[Any, ...] | dict[str, Any]) -> Captured:
    """Capture a model in its present mode (training or not), without decomposition.

    Raises
    ------
    UnsupportedModelError
        If neither ``torch.export`` nor a run on the inputs can be captured; with the first line
        of what the former says.
    """
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, None)
    try:
        with quiet(), restored(model):
            program = torch.export.export(model, args, kwargs, strict=False)
        if _has_fixed_shapes(program.graph_module):
            return _exported(program, model)
        return capture_run(model, inputs)
    except Exception as error:
        with suppress(Exception):
            return capture_run(model, inputs)
        raise unsupported(
            f"torch.export could not capture {type(model).__name__} for these example inputs "
            f"({type(error).__name__}: {first_line(error)}), and it could not be run on them."
        ) from error


def _has_fixed_shapes(module: fx.GraphModule) -> bool:
    """Whether no shape in a graph depends on values."""
    values = [node.meta.get("val") for node in module.graph.nodes]
    tensors = [leaf for leaf in torch.utils._pytree.tree_leaves(values) if isinstance(leaf, Tensor)]
    return all(isinstance(length, int) for tensor in tensors for length in tensor.shape)


def _exported(program: torch.export.ExportedProgram, model: nn.Module) -> Captured:
    known = set(model.state_dict())
    states, reasons = {}, {}
    for spec in program.graph_signature.input_specs:
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and spec.target in known:
            states[spec.arg.name] = str(spec.target)
        else:
            reasons[spec.arg.name] = _REASONS.get(spec.kind, "")
    written = [
        spec.target if spec.kind == OutputKind.BUFFER_MUTATION and spec.target in known else None
        for spec in program.graph_signature.output_specs
    ]
    return Captured(program.graph_module, states, reasons, written)


def statistics_of(model: nn.Module, inputs: tuple[Any, ...] | dict[str, Any]) -> set[str]:
    """The buffers that training changes; the others are constants.

    Parameters
    ----------
    model : nn.Module
        A private copy: it is run in training mode, and left there.
    inputs : tuple or dict
        Positional or keyword arguments.
    """
    found = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._NormBase)
        for name, _ in module.named_buffers(recurse=False)
    }
    before = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    with suppress(Exception), quiet(), torch.no_grad():  # a batch of one in a batch norm
        call(model.train(), inputs)
    changed = (
        name
        for name, buffer in model.named_buffers()
        if not buffer.is_meta and not torch.equal(buffer, before[name])
    )
    return found.union(changed)
