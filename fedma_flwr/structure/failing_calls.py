"""Inputs that a model does not take: what they are, and where in the model the call fails."""

from __future__ import annotations

import inspect
import linecache
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedma_flwr.structure.axes import UnsupportedModelError
from fedma_flwr.structure.model_copies import Inputs, call, cpu_inputs, quiet, running_copy
from fedma_flwr.structure.refusals import first_line

_WHOLE = {torch.int64, torch.int32, torch.int16, torch.uint8}  # an embedding has so many rows
_LONGEST = 120  # characters of a module's description
_OTHERS = (Path(torch.__file__).parent, Path(__file__).parents[1])  # whose frames say nothing


def refuse_failing_call(model: nn.Module, example_inputs: Inputs) -> None:
    """Refuse inputs for which the model does not run as it is.

    Parameters
    ----------
    model : nn.Module
        It is copied, never changed.
    example_inputs : Tensor, tuple or dict
        As in ``model(*example_inputs)`` or ``model(**example_inputs)``.

    Raises
    ------
    UnsupportedModelError
        It says what the inputs are, which module fails and what that one gets.
    """
    try:
        with quiet():
            twin = running_copy(model)
    except Exception:  # that is another fault, which is named elsewhere
        return
    within: list[tuple[str, nn.Module, Any]] = []  # modules that have begun and not ended
    _watch(twin, within)
    inputs = cpu_inputs(example_inputs)
    try:
        with quiet(), torch.no_grad():
            call(twin, inputs)
    except Exception as error:
        star = "**" if isinstance(inputs, dict) else "*"
        raise UnsupportedModelError(
            f"model({star}example_inputs) does not work: the model is {type(model).__name__}, "
            f"example_inputs are {_told(inputs)}. {_place(within, error)}: {type(error).__name__}: "
            f"{first_line(error)}. Give inputs of the shapes and types that the train function "
            "gives the model, as a batch of two."
        ) from error


def _watch(model: nn.Module, within: list[tuple[str, nn.Module, Any]]) -> None:
    """Let a list have the modules that are running; after a failure, those that it was in."""

    def enter(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            within.append((name, module, (*args, *kwargs.values())))

        return hook

    for name, module in model.named_modules():
        module.register_forward_pre_hook(enter(name), with_kwargs=True)
        module.register_forward_hook(lambda *_: within.pop() and None)


def _place(within: list[tuple[str, nn.Module, Any]], error: Exception) -> str:
    """Where a call has failed, in words."""
    if not within:
        return "It fails"
    name, module, inputs = within[-1]
    if not name:
        signature = inspect.signature(module.forward)
        return f"It fails in {type(module).__name__}.forward{signature}{_line(error)}"
    text = " ".join(repr(module).split())
    text = text if len(text) <= _LONGEST else type(module).__name__
    return f"It fails in {name!r}, {text}, which gets {_told(inputs)}{_line(error)}"


def _line(error: Exception) -> str:
    """The last line of the user's own code that the call came to, if there is one."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not any(o in Path(f.filename).parents for o in _OTHERS)]
    if not own:
        return ""
    line = linecache.getline(own[-1].filename, own[-1].lineno or 0).strip()
    where = f"{Path(own[-1].filename).name}, line {own[-1].lineno}"
    return f" ({where}: {line})" if line else f" ({where})"


def _told(inputs: Any) -> str:
    """Shapes and types of arguments."""
    if isinstance(inputs, Mapping):
        return "{" + ", ".join(f"{name!r}: {_told(value)}" for name, value in inputs.items()) + "}"
    if isinstance(inputs, tuple | list):
        return "(" + ", ".join(map(_told, inputs)) + "," * (len(inputs) == 1) + ")"
    if isinstance(inputs, Tensor):
        kind, shape = str(inputs.dtype).removeprefix("torch."), tuple(inputs.shape)
        if inputs.dtype in _WHOLE and inputs.numel() and not inputs.is_meta:
            return f"{kind} from {inputs.min()} to {inputs.max()} of shape {shape}"
        return f"{kind} of shape {shape}"
    return type(inputs).__name__
