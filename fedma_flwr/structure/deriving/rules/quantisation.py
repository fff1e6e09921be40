"""Fake quantisation: values are rounded, one by one, on a scale of a tensor or of a channel."""

from __future__ import annotations

from typing import Any

from fedma_flwr.structure.deriving.atoms import Axes, size, unify
from fedma_flwr.structure.deriving.rules.call import Call, rule


def _rounded(call: Call, axis: int, *others: str) -> Axes:
    x = call.axes("self")
    for name in others:
        for own in call.axes(name)[:1]:
            if size(own) == size(x[axis]):
                unify(own, x[axis])
    return x


@rule("fake_quantize_per_tensor_affine", "_fake_quantize_learnable_per_tensor_affine")
def per_tensor(call: Call) -> Axes:
    """One scale for all."""
    return call.axes("self")


@rule("fake_quantize_per_channel_affine", "_fake_quantize_learnable_per_channel_affine")
def per_channel(call: Call) -> Axes:
    """One scale for each position of an axis."""
    return _rounded(call, int(call["axis"]), "scale", "zero_point")


@rule("fused_moving_avg_obs_fake_quant", "_fused_moving_avg_obs_fq_helper")
def observed(call: Call) -> Any:
    """The scale follows the least and largest values seen."""
    names = ("running_min", "running_max", "scale", "zero_point")
    x = _rounded(call, int(call["ch_axis"]), *names) if call["per_row_fake_quant"] else None
    x = call.axes("self") if x is None else x
    return [x, x] if isinstance(call.node.meta["val"], (list, tuple)) else x
