"""Private copies of a model and of its inputs, and calling them without a trace."""

from __future__ import annotations

import copy
import io
import itertools
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedma_flwr.structure.axes import UnsupportedModelError
from fedma_flwr.structure.refusals import first_line, unsupported

#: The only argument, positional arguments, or keyword arguments by name; or a list of several such
#: examples.
Inputs = Tensor | Sequence[Any] | Mapping[str, Any]
#: One example.
Example = tuple[Any, ...] | dict[str, Any]


def private_copy(model: nn.Module, example_inputs: Inputs) -> nn.Module:
    """A copy of a model on the CPU (or the meta device) that may be changed at will.

    Raises
    ------
    UnsupportedModelError
        If the arguments are no model and inputs for it, if the model cannot be copied, if it has
        no parameters, or if its state dict is more than tensors of their own.
    """
    check_model_and_inputs(model, example_inputs)
    model = with_lazy_layers_built(model, example_inputs)
    for value in torch.utils._pytree.tree_leaves(examples_of(example_inputs)):
        if isinstance(value, Tensor) and not value.numel():
            raise UnsupportedModelError(
                f"example_inputs must have entries, but one has the shape {tuple(value.shape)}."
            )
    _check_state(model)
    try:
        with quiet():
            twin = _copy(model)
            twin = twin if any(p.is_meta for p in twin.parameters()) else twin.cpu()
            # A change of mode drops what the code has cached in it.
            return twin.train(not model.training).train(model.training)
    except Exception as error:
        raise unsupported(f"The model cannot be copied: {first_line(error)}") from error


def _copy(model: nn.Module, known: Mapping[int, Any] = MappingProxyType({})) -> nn.Module:
    """A deep copy, also of modules that keep results of a pass: they are copied as values."""
    attributes = (value for module in model.modules() for value in module.__dict__.values())
    kept = torch.utils._pytree.tree_leaves(list(attributes))
    fresh: dict[int, Any] = {
        id(value): value.detach().clone()
        for value in kept
        if isinstance(value, Tensor) and not value.is_leaf
    }
    return copy.deepcopy(model, {**fresh, **known})


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model's state dict, without its extra state."""
    state = model.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


@contextmanager
def plain_attention() -> Iterator[None]:
    """Fused attention layers of torch check widths that others do not need."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def with_lazy_layers_built(model: nn.Module, example_inputs: Inputs) -> nn.Module:
    """The model; if it has lazy layers a copy, in which one pass has given them their shapes."""
    if not _lazy_tensors(model):
        return model
    try:
        with quiet(), torch.no_grad():
            twin = running_copy(model)
            call(twin, cpu_inputs(example_inputs))
            return twin.train(model.training)
    except Exception:  # the model is refused with the names of what has no shape
        return model


def _lazy_tensors(model: nn.Module) -> list[Tensor]:
    return [t for t in (*model.parameters(), *model.buffers()) if nn.parameter.is_lazy(t)]


def running_copy(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode that may be run, lazy layers included; whatever copying raises."""
    # Torch copies no tensor without a shape: each gets one like it.
    lazy = _lazy_tensors(model)
    kinds: list[Any] = [type(tensor) for tensor in lazy]
    pairs = zip(kinds, lazy, strict=True)
    fresh: dict[int, Any] = {id(t): kind(device="cpu", dtype=t.dtype) for kind, t in pairs}
    twin = _copy(model, fresh)
    return (twin if any(p.is_meta for p in twin.parameters()) else twin.cpu()).eval()


def check_model_and_inputs(model: object, example_inputs: object) -> None:
    """Refuse what is no model, and what are no inputs, by type.

    Raises
    ------
    UnsupportedModelError
        It names the argument.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(f"model must be an nn.Module, but was {type(model).__name__}.")
    if not isinstance(example_inputs, Tensor | tuple | list | Mapping):
        _refuse_inputs(type(example_inputs).__name__)
    for example in examples_of(cast(Inputs, example_inputs)):
        if isinstance(example, dict) and not all(isinstance(key, str) for key in example):
            _refuse_inputs("a dict with other keys than names")


def _refuse_inputs(what: str) -> None:
    raise UnsupportedModelError(
        "example_inputs must be a tensor, a tuple of them, as in model(*example_inputs), a dict of "
        f"them, as in model(**example_inputs), or a list of several such examples, but was {what}."
    )


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
        if not isinstance(tensor, Tensor):
            continue  # extra state, which is the code's own
        if tensor.layout != torch.strided:
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


def examples_of(example_inputs: Inputs) -> list[Example]:
    """All examples: a list of tuples and dicts only is one of examples, all else is one example.

    Parameters
    ----------
    example_inputs : tuple, dict, or list
        A list of tensors is one example, its positional arguments, as a tuple is.
    """
    if isinstance(example_inputs, list) and example_inputs:
        several = [own for own in example_inputs if isinstance(own, (tuple, Mapping))]
        if len(several) == len(example_inputs):
            return [_plain(own) for own in several]
    return [_plain(example_inputs)]


def cpu_inputs(example_inputs: Inputs) -> Example:
    """The first example with every tensor on the CPU, free of gradients."""
    return cpu_examples(example_inputs)[0]


def cpu_examples(example_inputs: Inputs) -> list[Example]:
    """All examples with every tensor on the CPU, free of gradients."""

    def move(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.detach().clone() if value.is_meta else value.detach().cpu().clone()

    moved: list[Example]
    moved = torch.utils._pytree.tree_map(move, examples_of(example_inputs))
    return moved


def _plain(example_inputs: Inputs) -> Example:
    """A tuple or dict of whatever tensor, sequence or mapping (a tokenizer's result) they are."""
    if isinstance(example_inputs, Tensor):
        return (example_inputs,)
    return dict(example_inputs) if isinstance(example_inputs, Mapping) else tuple(example_inputs)


def call(model: nn.Module, inputs: Example) -> Any:
    """What a model makes of positional or of keyword arguments."""
    return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


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
