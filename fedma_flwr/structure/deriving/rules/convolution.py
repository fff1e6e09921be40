"""Convolutions: plain, transposed, grouped and depthwise, in any number of dimensions."""

from __future__ import annotations

from fedma_flwr.structure.deriving.atoms import Axes, Axis, pin, size, unify
from fedma_flwr.structure.deriving.reshaping import divide, product
from fedma_flwr.structure.deriving.rules.call import Call, fixed_like, rule


def _spatial(x: Axes, w: Axes) -> int:
    """Pin what is spatial; the position of the channel axis of the input."""
    kernel = len(w) - 2
    for axis in (*w[2:], *x[-kernel:]):
        pin(axis)
    return len(x) - kernel - 1


def _result(call: Call, x: Axes, channel: int, out: Axis) -> Axes:
    if bias := call.optional("bias"):
        unify(bias[0], out)
    return (*x[:channel], out, *fixed_like(call.shape[channel + 1 :]))


@rule("conv1d", "conv2d", "conv3d")
def convolution(call: Call) -> Axes:
    """Weight ``(out, in / groups, *kernel)``."""
    x, w = call.axes("input"), call.axes("weight")
    channel = _spatial(x, w)
    groups = int(call["groups"])
    call.contracted.append(w[1])
    out = w[0] if groups == 1 else _grouped(x[channel], w[0], w[1], groups)
    if groups == 1:
        unify(w[1], x[channel])
    return _result(call, x, channel, out)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed_convolution(call: Call) -> Axes:
    """Weight ``(in, out / groups, *kernel)``."""
    x, w = call.axes("input"), call.axes("weight")
    channel = _spatial(x, w)
    groups = int(call["groups"])
    call.contracted.append(w[0])
    unify(w[0], x[channel])
    if groups == 1:
        return _result(call, x, channel, w[1])
    block, _ = divide(w[0], [groups, size(w[0]) // groups])
    return _result(call, x, channel, product([block, w[1]]))


def _grouped(x: Axis, out: Axis, per_group: Axis, groups: int) -> Axis:
    """Whole blocks may be permuted, and positions inside all blocks alike."""
    if size(out) == groups == size(x):
        unify(out, x)  # depthwise: whatever is known about the channels stays as it is
        return out
    into = [x, per_group] if size(x) == groups else divide(x, [groups, size(x) // groups])
    block, inner = into
    unify(inner, per_group)
    out_block, _ = divide(out, [groups, size(out) // groups])
    unify(block, out_block)
    return out
