"""Capture a model's computation as a graph of ATen operators, without touching the model."""

from __future__ import annotations

import copy
import io
import itertools
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from typing import Any

import torch
from torch import Tensor, fx, nn

from fedma_flwr.structure.axes import UnsupportedModelError

BY_HAND = (
    "Write the spec by hand instead: spec = PermutationSpec(groups={'conv1': 20}, axes="
    "{'conv1.weight': 'conv1, 1, 5, 5', ...}) with one expression for every axis of every tensor "
    "of the state dict; check it with prove_spec(spec, model, example_inputs) and pass it on "
    "instead of the model."
)


def unsupported(problem: str) -> UnsupportedModelError:
    """The error for a model that no spec can be derived for, with the way out."""
    return UnsupportedModelError(f"{problem} {BY_HAND}")


def private_copy(model: nn.Module, example_inputs: Sequence[Any]) -> nn.Module:
    """A copy of a model on the CPU (or the meta device) that may be changed at will.

    Raises
    ------
    UnsupportedModelError
        If the arguments are no model and inputs for it, if the model cannot be copied, if it has
        no parameters, or if its state dict is more than tensors of their own.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(f"model must be an nn.Module, but was {type(model).__name__}.")
    if not isinstance(example_inputs, (tuple, list)):
        raise UnsupportedModelError(
            f"example_inputs must be a tuple of tensors, as in model(*example_inputs), but was "
            f"{type(example_inputs).__name__}."
        )
    for value in torch.utils._pytree.tree_leaves(tuple(example_inputs)):
        if isinstance(value, Tensor) and not value.numel():
            raise UnsupportedModelError(
                f"example_inputs must have entries, but one has the shape {tuple(value.shape)}."
            )
    _check_state(model)
    try:
        with quiet():
            twin = copy.deepcopy(model)
            return twin if any(p.is_meta for p in twin.parameters()) else twin.cpu()
    except Exception as error:
        raise unsupported(f"The model cannot be copied: {first_line(error)}") from error


def _check_state(model: nn.Module) -> None:
    if next(model.parameters(), None) is None:
        raise UnsupportedModelError(f"{type(model).__name__} has no parameters: nothing to match.")
    spans: dict[int, tuple[int, int, str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(
            tensor, nn.parameter.UninitializedParameter | nn.parameter.UninitializedBuffer
        ):
            raise UnsupportedModelError(
                f"{name!r} has no shape yet: run the model once, so that lazy layers are built."
            )
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise unsupported(f"The state dict entry {name!r} is no dense tensor.")
        if tensor.numel() and not tensor.is_meta:
            spans.setdefault(id(tensor), (*_span(tensor), name))
    ordered = sorted(spans.values())
    for (_, end, one), (start, _, other) in itertools.pairwise(ordered):
        if start < end:
            raise unsupported(f"{one!r} and {other!r} are different views of the same memory.")


def _span(tensor: Tensor) -> tuple[int, int]:
    """First and last address of a tensor's elements."""
    reach = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (reach + 1) * tensor.element_size()


def cpu_inputs(example_inputs: Sequence[Any]) -> tuple[Any, ...]:
    """The example inputs with every tensor on the CPU, free of gradients."""

    def move(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.detach().clone() if value.is_meta else value.detach().cpu().clone()

    return tuple(torch.utils._pytree.tree_map(move, tuple(example_inputs)))


def capture(model: nn.Module, inputs: tuple[Any, ...]) -> torch.export.ExportedProgram:
    """Export a model in its present mode (training or not), without decomposition.

    Raises
    ------
    UnsupportedModelError
        With the first line of what ``torch.export`` says.
    """
    try:
        with quiet():
            return torch.export.export(model, inputs, strict=False)
    except Exception as error:
        raise unsupported(
            f"torch.export could not capture {type(model).__name__} for these example inputs "
            f"({type(error).__name__}: {first_line(error)})."
        ) from error


def statistics_of(model: nn.Module, inputs: tuple[Any, ...]) -> set[str]:
    """The buffers that training changes; the others are constants.

    Parameters
    ----------
    model : nn.Module
        A private copy: it is run in training mode, and left there.
    inputs : tuple
        Inputs as in ``model(*inputs)``.
    """
    found = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._NormBase)
        for name, _ in module.named_buffers(recurse=False)
    }
    before = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    with suppress(Exception), quiet(), torch.no_grad():  # a batch of one in a batch norm
        model.train()(*inputs)
    changed = (
        name
        for name, buffer in model.named_buffers()
        if not buffer.is_meta and not torch.equal(buffer, before[name])
    )
    return found.union(changed)


@contextmanager
def quiet() -> Iterator[None]:
    """Neither warnings nor logs, and the state of the random generator as it was."""
    disabled = logging.root.manager.disable
    inner = disabled >= logging.CRITICAL
    if not inner:  # it empties the caches of all loggers there are
        logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            torch.random.fork_rng(devices=[]),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        if not inner:
            logging.disable(disabled)


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


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
