"""Capture a model's computation as a graph of ATen operators, without touching the model."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import fx, nn

from fedma_flwr.structure.model_copies import call, quiet
from fedma_flwr.structure.refusals import first_line, unsupported


def capture(
    model: nn.Module, inputs: tuple[Any, ...] | dict[str, Any]
) -> torch.export.ExportedProgram:
    """Export a model in its present mode (training or not), without decomposition.

    Raises
    ------
    UnsupportedModelError
        With the first line of what ``torch.export`` says.
    """
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, None)
    try:
        with quiet():
            return torch.export.export(model, args, kwargs, strict=False)
    except Exception as error:
        raise unsupported(
            f"torch.export could not capture {type(model).__name__} for these example inputs "
            f"({type(error).__name__}: {first_line(error)})."
        ) from error


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


def location(node: fx.Node) -> str:
    """The module that makes a call, as in ``layer1.0.conv1 (Conv2d)``."""
    stack = node.meta.get("nn_module_stack") or {}
    path, kind = list(stack.values())[-1] if stack else ("", "model")
    name = kind if isinstance(kind, str) else kind.__name__
    return f"{path or 'the model'} ({name.rpartition('.')[2]})"


def source_line(node: fx.Node) -> str:
    """Where in the code a call stands, as in ``net.py:12``, and the line."""
    lines = (node.meta.get("stack_trace") or "").strip().splitlines()
    frames = [index for index, line in enumerate(lines) if line.strip().startswith("File ")]
    if not frames:
        return "an unknown line"
    own = [index for index in frames if "/torch/" not in lines[index]] or frames
    place = lines[own[-1]].strip().split(", in ")[0].removeprefix("File ").replace(", line ", ":")
    return " ".join([place.replace('"', ""), *(line.strip() for line in lines[own[-1] + 1 :][:1])])
