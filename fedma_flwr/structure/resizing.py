"""Give an ``nn.Module`` the widths that a state dict has, module attributes included."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.nn.utils.parametrize import is_parametrized

from fedma_flwr.structure.axes import SpecError

Shape = tuple[int, ...]
_Shapes = Mapping[str, Shape]


def resize(model: nn.Module, state_dict: Mapping[str, Tensor]) -> nn.Module:
    """Resize a model in place so that ``model.load_state_dict(state_dict)`` fits.

    Parameters
    ----------
    model : nn.Module
        The model as its code builds it. Parameters and buffers whose shapes differ are replaced
        by uninitialised ones of the same dtype, device and `requires_grad`; tied parameters stay
        tied; the attributes that describe widths (``out_channels``, ``hidden_size``,
        ``num_features``, ...) follow.
    state_dict : mapping of str to Tensor
        All tensors of the model, at the wanted widths.

    Returns
    -------
    nn.Module
        The same object.

    Raises
    ------
    SpecError
        If names differ, or the number of axes of a tensor does, or if the layers of a recurrent
        module have several widths: it cannot have more than one.

    Notes
    -----
    Widths that a forward pass has hard-coded (``x.view(-1, 400)``) are beyond its reach.
    """
    _check_names(model, state_dict)
    replaced: dict[nn.Parameter, nn.Parameter] = {}
    for prefix, module in model.named_modules():
        own = [
            *module.named_parameters(recurse=False, remove_duplicate=False),
            *module.named_buffers(recurse=False),
        ]
        names = {name: f"{prefix}.{name}" if prefix else name for name, _ in own}
        shapes = {
            name: tuple(state_dict[names[name]].shape)
            for name in names
            if names[name] in state_dict
        }
        built = [_build(tensor, shapes[name]) for name, tensor in own if name in shapes]
        if not any(built) and all(
            tuple(tensor.shape) == shapes.get(name, tensor.shape) for name, tensor in own
        ):
            continue
        _follow(module, shapes)
        for name, tensor in own:
            if name in shapes and tuple(tensor.shape) != shapes[name]:
                _replace(module, name, tensor, shapes[name], replaced)
        if isinstance(module, nn.RNNBase):
            _rebind_flat_weights(module)
    return model


def _check_names(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    own = {n: v for n, v in model.state_dict().items() if isinstance(v, Tensor)}
    if missing := [name for name in own if name not in state_dict]:
        raise SpecError(
            f"The state dict lacks tensors of {type(model).__name__}: {missing}. If the model is "
            "to keep its own: load_model(model, arrays, strict=False)."
        )
    if extra := [name for name in state_dict if name not in own]:
        raise SpecError(f"The state dict has tensors that {type(model).__name__} lacks: {extra}.")
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            continue
        if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
            continue
        if tensor.dim() != state_dict[name].dim():
            raise SpecError(
                f"Tensor {name!r} has shape {tuple(state_dict[name].shape)}, but that of "
                f"{type(model).__name__} has {tensor.dim()} axes: {tuple(tensor.shape)}."
            )


def _build(tensor: Tensor, shape: Shape) -> bool:
    """Give a tensor of a lazy layer the state dict's shape; whether it had none."""
    if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
        tensor.materialize(shape)
        return True
    return False


def _replace(
    module: nn.Module,
    name: str,
    tensor: Tensor,
    shape: Shape,
    replaced: dict[nn.Parameter, nn.Parameter],
) -> None:
    empty = torch.empty(shape, dtype=tensor.dtype, device=tensor.device)
    if not isinstance(tensor, nn.Parameter):
        setattr(module, name, empty)
        return
    if tensor not in replaced:  # a tied parameter is replaced by one object everywhere
        replaced[tensor] = nn.Parameter(empty, requires_grad=tensor.requires_grad)
    setattr(module, name, replaced[tensor])


def _follow(module: nn.Module, shapes: _Shapes) -> None:
    """Update the attributes of a module that state its widths."""
    if is_parametrized(module) or "weight_v" in shapes or "weight_orig" in shapes:
        return  # its weight is computed; no forward pass reads the attributes
    for kinds, rule in _RULES:
        if isinstance(module, kinds):
            for attribute, value in rule(module, shapes).items():
                setattr(module, attribute, value)
            return


def _linear(_: nn.Module, shapes: _Shapes) -> dict[str, object]:
    return {"out_features": shapes["weight"][0], "in_features": shapes["weight"][1]}


def _bilinear(_: nn.Module, shapes: _Shapes) -> dict[str, object]:
    out, first, second = shapes["weight"]
    return {"out_features": out, "in1_features": first, "in2_features": second}


def _convolution(module: Any, shapes: _Shapes) -> dict[str, object]:
    out, per_group = shapes["weight"][:2]
    groups = _groups(module, out, "out_channels")
    return {"out_channels": out, "in_channels": per_group * groups, "groups": groups}


def _transposed(module: Any, shapes: _Shapes) -> dict[str, object]:
    inputs, per_group = shapes["weight"][:2]
    groups = _groups(module, inputs, "in_channels")
    return {"in_channels": inputs, "out_channels": per_group * groups, "groups": groups}


def _groups(module: Any, channels: int, attribute: str) -> int:
    """Groups of a convolution; those of a depthwise one follow its channels."""
    groups: int = module.groups
    if groups > 1 and groups == module.in_channels:
        return channels * groups // int(getattr(module, attribute))
    return groups


def _embedding(_: nn.Module, shapes: _Shapes) -> dict[str, object]:
    return {"num_embeddings": shapes["weight"][0], "embedding_dim": shapes["weight"][1]}


def _features(_: nn.Module, shapes: _Shapes) -> dict[str, object]:
    return {"num_features": next(iter(shapes.values()))[0]}


def _group_norm(_: nn.Module, shapes: _Shapes) -> dict[str, object]:
    return {"num_channels": shapes["weight"][0]}


def _prelu(_: nn.Module, shapes: _Shapes) -> dict[str, object]:
    return {"num_parameters": shapes["weight"][0]}


def _layer_norm(_: nn.Module, shapes: _Shapes) -> dict[str, object]:
    return {"normalized_shape": shapes["weight"]}


def _recurrent(module: Any, shapes: _Shapes) -> dict[str, object]:
    gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    sizes: dict[str, object] = {
        "input_size": shapes["weight_ih_l0"][1],
        "hidden_size": _common(module, "hidden_size", shapes, "weight_ih", gates),
    }
    if module.proj_size:
        sizes["proj_size"] = _common(module, "proj_size", shapes, "weight_hr")
    return sizes


def _common(module: nn.Module, attribute: str, shapes: _Shapes, prefix: str, gates: int = 1) -> int:
    """The number of units that all layers and directions have."""
    widths = sorted({s[0] // gates for name, s in shapes.items() if name.startswith(prefix)})
    if len(widths) > 1:
        raise SpecError(
            f"{type(module).__name__} has one {attribute} for all its layers and directions, not "
            f"{' and '.join(map(str, widths))}"
        )
    return widths[0]


def _recurrent_cell(module: nn.Module, shapes: _Shapes) -> dict[str, object]:
    return {"input_size": shapes["weight_ih"][1], "hidden_size": shapes["weight_hh"][1]}


def _attention(module: Any, shapes: _Shapes) -> dict[str, object]:
    if "in_proj_weight" in shapes:
        embed = key = value = shapes["in_proj_weight"][1]
    else:
        embed = shapes["q_proj_weight"][1]
        key, value = shapes["k_proj_weight"][1], shapes["v_proj_weight"][1]
    head = embed // module.num_heads
    return {"embed_dim": embed, "kdim": key, "vdim": value, "head_dim": head}


def _rebind_flat_weights(module: nn.RNNBase) -> None:
    module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]
    module.flatten_parameters()


_Rule = Callable[[nn.Module, _Shapes], dict[str, object]]
_RULES: tuple[tuple[tuple[type[nn.Module], ...], _Rule], ...] = (
    ((nn.Linear,), _linear),
    ((nn.Bilinear,), _bilinear),
    ((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _transposed),
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution),
    ((nn.Embedding, nn.EmbeddingBag), _embedding),
    ((nn.modules.batchnorm._NormBase,), _features),
    ((nn.GroupNorm,), _group_norm),
    ((nn.LayerNorm, nn.RMSNorm), _layer_norm),
    ((nn.PReLU,), _prelu),
    ((nn.RNNBase,), _recurrent),
    ((nn.RNNCellBase,), _recurrent_cell),
    ((nn.MultiheadAttention,), _attention),
)
