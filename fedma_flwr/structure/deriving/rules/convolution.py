"""Convolutions: plain, transposed, grouped and depthwise, in any number of dimensions."""

from __future__ import annotations

from fedma_flwr.structure.deriving.atoms import Axes, Axis, pin, size, unify
from fedma_flwr.structure.deriving.reshaping import divide, product
from fedma_flwr.structure.deriving.rules.call import Call, broadcast, fixed_like, rule


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
    into = [x, per_group] if size(x) == groups else divide(x, [groups, size(x) // groups])
    block, inner = into
    unify(inner, per_group)
    out_block, _ = divide(out, [groups, size(out) // groups])
    unify(block, out_block)
    return out


@rule("convolution")
def any_convolution(call: Call) -> Axes:
    """What all convolutions are below autograd."""
    result: Axes = transposed_convolution(call) if call["transposed"] else convolution(call)
    return result


@rule("torchvision.deform_conv2d")
def deformed_convolution(call: Call) -> Axes:
    """Each place of the kernel looks where its offsets say."""
    others = [call.axes("offset"), *([call.axes("mask")] if call["use_mask"] else [])]
    if int(call["groups"]) != 1 or int(call["offset_groups"]) != 1:
        call.pin_all("the channels of a deformable convolution are in groups")
        return fixed_like(call.shape)
    for axis in (axis for own in others for axis in own[1:]):
        call.pin(axis, "it holds offsets")
    x, w = call.axes("input"), call.axes("weight")
    channel = _spatial(x, w)
    call.contract(w[1], x[channel])
    broadcast(x[:1], *(own[:1] for own in others))
    return _result(call, x, channel, w[0])
