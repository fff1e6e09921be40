"""Capture what a model does in a run on real numbers: whatever runs can be captured.

``torch.export`` follows shapes only. It stops at code that looks at values (masks, routing, early
exits), at outputs of classes it does not know, at scripted parts and at gradients inside `forward`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import traceback
from torch.fx.experimental.proxy_tensor import make_fx

from fedma_flwr.structure.deriving.captured import Captured, location, source_line, state_names
from fedma_flwr.structure.model_copies import call, plain_attention, quiet
from fedma_flwr.structure.output_tensors import tensors_in
from fedma_flwr.structure.restoring import buffers_kept, restored

#: Operators whose results are numbers or shapes, so that the code may take another way.
_LOOKS = ("aten.item", "aten.is_nonzero", "aten.nonzero", "aten._local_scalar_dense")


def capture_run(model: nn.Module, inputs: tuple[Any, ...] | dict[str, Any]) -> Captured:
    """Record the operators of one run in the model's present mode.

    Parameters
    ----------
    model : nn.Module
        A private copy; its buffers and attributes are as before afterwards.
    inputs : tuple or dict
        Positional or keyword arguments.

    Raises
    ------
    Exception
        Whatever the run raises.
    """
    captured = _record(model, inputs, composite=True)
    names = [str(node.target) for node in captured.module.graph.nodes]
    if captured.reasons and any("_backward" in name for name in names):
        # What autograd has kept is known again only below autograd.
        return _record(model, inputs, composite=False)
    return captured


def looks_at_values(captured: Captured) -> str | None:
    """Where the code that was captured may do something else for other values; None if nowhere."""
    nodes = (n for n in captured.module.graph.nodes if str(n.target).startswith(_LOOKS))
    return next((f"{location(node)}, {source_line(node)}" for node in nodes), None)


def _record(
    model: nn.Module, inputs: tuple[Any, ...] | dict[str, Any], *, composite: bool
) -> Captured:
    leaves, form = torch.utils._pytree.tree_flatten(inputs)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    def run(*own: Tensor) -> list[Tensor]:
        fresh = iter(own)
        filled = [next(fresh) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        given = torch.utils._pytree.tree_unflatten(filled, form)
        return tensors_in(call(model, given))

    options: dict[str, Any] = {"pre_dispatch": composite, "_allow_non_fake_inputs": True}
    if "record_stack_traces" in inspect.signature(make_fx).parameters:
        options["record_stack_traces"] = True
    kept = (restored(model), buffers_kept(model), _modules_noted(model), plain_attention())
    with quiet(), ExitStack() as stack:
        for context in kept:
            stack.enter_context(context)
        trace = make_fx(run, tracing_mode="real", _error_on_data_dependent_ops=False, **options)
        module = trace(*(tensor.clone() for tensor in tensors))
        return _described(module, model)


def _described(module: fx.GraphModule, model: nn.Module) -> Captured:
    names, alive = state_names(model)
    memory = {(t.data_ptr(), t.shape, t.stride()): names[id(t)] for t in alive if t.numel()}
    states, reasons = {}, {}
    for node in module.graph.nodes:
        value = getattr(module, str(node.target), None) if node.op == "get_attr" else None
        if not isinstance(value, Tensor):
            continue
        place = (value.data_ptr(), value.shape, value.stride())
        if name := names.get(id(value)) or memory.get(place):
            states[node.name] = name
        else:
            reasons[node.name] = "meets a constant of the code"
    return Captured(module, states, reasons)


@contextmanager
def _modules_noted(model: nn.Module) -> Iterator[None]:
    """Every node of the graph knows which module made it."""
    stack: list[dict[str, tuple[str, type]]] = [{}]

    def enter(path: str) -> Any:
        def hook(module: nn.Module, _: Any) -> None:
            stack.append({**stack[-1], path: (path, type(module))})
            traceback.current_meta["nn_module_stack"] = stack[-1]

        return hook

    def leave(module: nn.Module, *_: Any) -> None:
        stack.pop()
        traceback.current_meta["nn_module_stack"] = stack[-1]

    with ExitStack() as hooks:
        hooks.enter_context(traceback.preserve_node_meta())
        for path, module in model.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):
                hooks.callback(module.register_forward_pre_hook(enter(path)).remove)
                hooks.callback(module.register_forward_hook(leave).remove)
        yield
