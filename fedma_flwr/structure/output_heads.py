"""How many heads a model has, and which of its tensors belong to which.

A spec knows the tensors that carry the model's output, not how many outputs there are: two layers
may be added up to one output, or be two tasks.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from fedma_flwr.structure.model_copies import Inputs, call, cpu_inputs, private_copy, quiet
from fedma_flwr.structure.spec import PermutationSpec
from fedma_flwr.structure.state_dict_names import module_of

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def head_layers(spec: PermutationSpec) -> tuple[str, ...]:
    """Paths of the layers that make outputs: those of the head's tensors with two axes or more.

    What has one axis only (biases, a norm on the output) makes none.
    """
    weights = [name for name in spec.head if len(spec.axes[name]) > 1]
    return tuple(dict.fromkeys(module_of(name) or name for name in weights))


def tensors_of_head(spec: PermutationSpec, name: str) -> tuple[str, ...]:
    """The head's tensors at a path, or below it; none if there is no such head."""
    return tuple(n for n in spec.head if n == name or n.startswith(f"{name}."))


def has_several_heads(
    spec: PermutationSpec,
    model: nn.Module | None = None,
    example_inputs: Inputs | None = None,
) -> bool:
    """Whether a model has several outputs that layers of their own make.

    Parameters
    ----------
    spec : PermutationSpec
        The model's spec.
    model, example_inputs : nn.Module, and Tensor, tuple or dict, optional
        With them, layers of one width whose outputs are added up to one count as one head.
    """
    if len(head_layers(spec)) < 2:
        return False
    if model is None or example_inputs is None:
        return True
    shapes = spec.shapes()
    widths = {shapes[n][spec.output_axis(n)] for n in spec.head if len(shapes[n]) > 1}
    return len(widths) > 1 or _outputs_of_width(model, example_inputs, widths.pop()) != 1


def _outputs_of_width(model: nn.Module, example_inputs: Inputs, width: int) -> int:
    """How many of the output's tensors have so many channels, or columns; 0 if it does not run."""
    with suppress(Exception), quiet(), torch.no_grad():
        twin = private_copy(model, example_inputs).eval()
        output = call(twin, cpu_inputs(example_inputs))
        leaves = torch.utils._pytree.tree_leaves(_as_plain(output))
        shapes = [leaf.shape for leaf in leaves if isinstance(leaf, Tensor)]
        return sum(len(s) > 1 and width in (s[1], s[-1]) for s in shapes)
    return 0


def _as_plain(output: Any) -> Any:
    """Outputs like transformers' as a dict: pytrees know only the kinds that were registered."""
    return dict(output) if hasattr(output, "items") else output


def why_not_solved(
    spec: PermutationSpec,
    layer: str,
    model: nn.Module | None = None,
    example_inputs: Inputs | None = None,
) -> str:
    """Why a model's last linear layer is no head that could be solved, in words; "" if it is one.

    A spec does not tell: what is frozen is meant to stay, and a norm on the output has no tensors
    where it has no parameters.
    """
    if model is None or example_inputs is None:
        return ""
    frozen = [n for n, p in model.named_parameters() if n in spec.head and not p.requires_grad]
    if frozen:
        return f"{frozen[0]!r} does not require gradients, so that it stays as it is"
    norm = _norm_behind(model, example_inputs, layer)
    return f"the normalisation {norm!r} comes after it" if norm else ""


def _norm_behind(model: nn.Module, example_inputs: Inputs, layer: str) -> str:
    """Path of a normalisation that is called after the last call of a layer; "" if none is."""
    calls: list[str] = []
    with suppress(Exception), quiet(), torch.no_grad():
        twin = private_copy(model, example_inputs).eval()
        for path, module in twin.named_modules():
            if path == layer or isinstance(module, _NORMS):
                module.register_forward_hook(lambda *_, path=path: calls.append(path))
        call(twin, cpu_inputs(example_inputs))
    behind = calls[::-1].index(layer) if layer in calls else 0
    return calls[-1] if behind else ""
