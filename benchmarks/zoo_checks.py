"""Check a spec by its definition, with code that shares nothing with `prove_spec`.

Everything is in float64. The weights are the model's own, moved at random, so that nothing is zero
or alike by accident; what a model itself draws at random is drawn from the same seed each time.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from fedma_flwr.structure import PermutationSpec, resize

#: Largest relative difference that counts as none: code may compute in float32 here and there.
_TOLERANCE = 1e-4
_GROWN = (1, 3)
_DROPOUTS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout")


def check(model: nn.Module, inputs: Any, spec: PermutationSpec) -> str:
    """What is wrong about a spec; empty if nothing is."""
    doubles = _prepared(model), tree_map(_double, inputs)
    if _runs(*doubles):
        model, inputs = doubles
    else:  # some operators know no float64
        model = doubles[0].float()
    generator = torch.Generator().manual_seed(7)
    orders = {n: torch.randperm(size, generator=generator) for n, size in spec.sizes.items()}
    other = copy.deepcopy(model)
    other.load_state_dict(spec.permute(model.state_dict(), orders))
    for training in (False, True):
        found = _compare(model, other, inputs, spec, orders, training=training)
        if found:
            return f"permuted, {'training' if training else 'evaluation'}: {found}"
    for more in _GROWN:
        if found := _grown(model, inputs, spec, more, generator):
            return f"{more} more: {found}"
    return ""


def _runs(model: nn.Module, inputs: Any) -> bool:
    try:
        _pass(model, inputs, training=False)
    except Exception:
        return False
    return True


def _prepared(model: nn.Module) -> nn.Module:
    """A copy in float64, with weights moved at random and without dropout."""
    twin = copy.deepcopy(model).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in twin.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.02 * noise)
    for module in twin.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        elif isinstance(module, nn.RNNBase | nn.MultiheadAttention):
            module.dropout = 0.0
    return twin


def _compare(
    model: nn.Module,
    other: nn.Module,
    inputs: Any,
    spec: PermutationSpec,
    orders: dict[str, Tensor],
    *,
    training: bool,
) -> str:
    try:
        own = _pass(model, inputs, training=training)
        if not _repeats(model, inputs, own[0], training=training):
            return ""  # its own numbers differ from pass to pass: nothing to compare
    except Exception:
        return ""  # a model that does not run in this mode
    theirs = _pass(other, inputs, training=training)
    if (change := _difference(own[0], theirs[0])) > _TOLERANCE:
        return f"outputs differ by {change:.1e}"
    expected = spec.permute({n: g for n, g in own[1].items() if n in spec.axes}, orders)
    largest = max((float(g.abs().max()) for g in expected.values() if g.numel()), default=0.0)
    for name, gradient in expected.items():
        error = float((gradient - theirs[1][name]).abs().max()) if gradient.numel() else 0.0
        if error > _TOLERANCE * max(largest, 1e-12):
            return f"the gradient of {name!r} differs by {error / largest:.1e}"
    return ""


def _grown(
    model: nn.Module, inputs: Any, spec: PermutationSpec, more: int, generator: torch.Generator
) -> str:
    """Whether all groups that may grow do so together, at random places, in both modes."""
    sizes = {name: group.size for name, group in spec.groups.items() if group.growable}
    if not sizes:
        return ""
    widths = {name: size + more + at % 2 for at, (name, size) in enumerate(sizes.items())}
    places = {
        name: torch.randperm(widths[name], generator=generator)[:size].sort().values
        for name, size in sizes.items()
    }
    state = spec.expand(model.state_dict(), places, widths)
    wide = resize(copy.deepcopy(model), state)
    wide.load_state_dict(state)
    for training in (False, True):
        try:
            own = _pass(model, inputs, training=training)[0]
            if not _repeats(model, inputs, own, training=training):
                continue
        except Exception:
            continue
        change = _difference(own, _pass(wide, inputs, training=training)[0])
        if change > _TOLERANCE:
            return f"outputs differ by {change:.1e} in {'training' if training else 'evaluation'}"
    return ""


def _pass(
    model: nn.Module, inputs: Any, *, training: bool
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Outputs, and the gradients of their squares' sum."""
    model = copy.deepcopy(model).train(training)
    torch.manual_seed(0)
    given = tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, inputs)
    with ExitStack() as without:  # dropout by a function has no module to be set to 0
        for name in _DROPOUTS:
            without.enter_context(mock.patch.object(nn.functional, name, _kept))
        outputs = list(_tensors(model(**given) if isinstance(given, dict) else model(*given)))
    floats = [out for out in outputs if out.is_floating_point() and out.requires_grad]
    gradients: dict[str, Tensor] = {}
    if floats:
        torch.stack([out.square().mean() for out in floats]).sum().backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return [out.detach() for out in outputs], gradients


def _kept(value: Tensor, *_: object, **__: object) -> Tensor:
    return value


def _repeats(model: nn.Module, inputs: Any, outputs: list[Tensor], *, training: bool) -> bool:
    return _difference(outputs, _pass(model, inputs, training=training)[0]) == 0.0


def _difference(outputs: list[Tensor], others: list[Tensor]) -> float:
    if len(outputs) != len(others):
        return float("inf")
    worst = 0.0
    for one, other in zip(outputs, others, strict=True):
        if one.shape != other.shape:
            return float("inf")
        if not one.numel():
            continue
        change, scale = (one - other).abs().double(), one.abs().double()
        known = scale.isfinite() & (scale < 1e30)
        if bool(known.any()):
            worst = max(
                worst, float(change[known].nan_to_num(1e9).max() / (scale[known].max() + 1e-12))
            )
    return worst


def _tensors(value: Any, depth: int = 0) -> Iterator[Tensor]:
    """The tensors of whatever a model returns."""
    if isinstance(value, Tensor):
        yield value.abs() if value.is_complex() else value
    elif isinstance(value, dict):
        for entry in value.values():
            yield from _tensors(entry, depth + 1)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _tensors(entry, depth + 1)
    elif hasattr(value, "__dict__") and depth < 4:
        for entry in vars(value).values():
            yield from _tensors(entry, depth + 1)


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
