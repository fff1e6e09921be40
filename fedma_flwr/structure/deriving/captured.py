"""`Captured`: a model's computation as a graph, however it was captured."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePath

from torch import Tensor, fx, nn

from fedma_flwr.structure.model_copies import tensors_of


@dataclass(frozen=True)
class Captured:
    """A graph of ATen operators and what its inputs and outputs stand for.

    Parameters
    ----------
    module : torch.fx.GraphModule
        The graph.
    states : dict of str to str
        For the nodes that read a tensor of the state dict, its name there.
    reasons : dict of str to str
        For other inputs of the graph, why what they meet keeps its order.
    written : list of (str or None)
        For every output of the graph the tensor of the state dict that it is written to.
    """

    module: fx.GraphModule
    states: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    written: list[str | None] = field(default_factory=list)


def location(node: fx.Node) -> str:
    """The module that makes a call, as in ``layer1.0.conv1 (Conv2d)``."""
    stack = node.meta.get("nn_module_stack") or {}
    path, kind = list(stack.values())[-1] if stack else ("", "model")
    name = kind if isinstance(kind, str) else kind.__name__
    return f"{path or 'the model'} ({name.rpartition('.')[2]})"


def source_line(node: fx.Node) -> str:
    """Where in the code a call stands: the name of the file, and the line."""
    lines = (node.meta.get("stack_trace") or node.stack_trace or "").strip().splitlines()
    frames = [index for index, line in enumerate(lines) if line.strip().startswith("File ")]
    if not frames:
        return "an unknown line"
    own = [index for index in frames if "/torch/" not in lines[index]] or frames
    place = lines[own[-1]].strip().removeprefix("File ").split(", line ")[0].strip('"')
    code = (line.strip() for line in lines[own[-1] + 1 :][:1])
    return " ".join([f"{PurePath(place).name}:", *code])


def state_names(model: nn.Module) -> tuple[dict[int, str], list[Tensor]]:
    """By identity the names of a model's tensors; the tensors, which must live on meanwhile."""
    state = tensors_of(model)
    return {id(tensor): name for name, tensor in reversed(state.items())}, list(state.values())
