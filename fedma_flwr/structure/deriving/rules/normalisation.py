"""Normalisation: statistics over an axis do not depend on the order of its positions."""

from __future__ import annotations

from typing import Any

from fedma_flwr.structure.deriving.atoms import Axes, size, unify
from fedma_flwr.structure.deriving.reshaping import divide
from fedma_flwr.structure.deriving.rules.call import Call, rule


@rule("batch_norm", "instance_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm")
def batch_norm(call: Call) -> Axes:
    """Parameters and running statistics belong to the channels."""
    x = call.axes("input")
    for name in ("weight", "bias", "running_mean", "running_var"):
        if axes := call.optional(name):
            unify(axes[0], x[1])
    if call.optional("running_var"):  # the schema takes both statistics or none
        call.variances.append((call.axes("running_var"), call.axes("running_mean")))
    return x


@rule("layer_norm", "rms_norm")
def layer_norm(call: Call) -> Axes:
    """Parameters belong to the last axes."""
    x = call.axes("input")
    for name in ("weight", "bias"):
        own = call.optional(name) or ()
        for one, other in zip(own, x[len(x) - len(own) :], strict=True):
            unify(one, other)
    return x


@rule("native_layer_norm")
def native_layer_norm(call: Call) -> Any:
    """As `layer_norm`; the statistics that it returns are not followed."""
    return [layer_norm(call), None, None]


@rule("group_norm")
def group_norm(call: Call) -> Axes:
    """Whole blocks of channels may be permuted, and channels inside all blocks alike."""
    return _in_groups(call, int(call["num_groups"]))


def _in_groups(call: Call, blocks: int) -> Axes:
    x = call.axes("input")
    if 1 < blocks < size(x[1]):
        divide(x[1], [blocks, size(x[1]) // blocks])
    for name in ("weight", "bias"):
        if axes := call.optional(name):
            unify(axes[0], x[1])
    return x


@rule("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_functional")
def native_batch_norm(call: Call) -> Any:
    """As `batch_norm`; the statistics that it returns are not followed."""
    return [batch_norm(call), *[None] * (len(call.shapes) - 1)]


@rule("native_group_norm")
def native_group_norm(call: Call) -> Any:
    """As `group_norm`; the statistics that it returns are not followed."""
    return [_in_groups(call, int(call["group"])), None, None]
