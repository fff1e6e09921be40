"""Units that a model's output does not depend on at what was drawn: dead ReLUs, for example."""

from __future__ import annotations

import math

from torch import Tensor

from fedma_flwr.structure.axes import AxisExpression
from fedma_flwr.structure.proving.model_in_proof import ModelInProof
from fedma_flwr.structure.proving.sensitivity import gradients_of

# Part of the largest derivative of a group that counts as none.
_NOTHING = 1e-12


def dead_units(model: ModelInProof) -> dict[str, Tensor]:
    """For every group (width,) whether there is an example whose output a unit does not change.

    Whatever is done to a dead unit changes nothing, so that it proves nothing. Groups without any
    derivative are left out: nothing is known of them, or an example does not use them.
    """
    inputs, found = model.inputs, dict[str, Tensor]()
    try:
        for example in inputs:
            model.inputs = [example]
            for group, dead in _dead_units(model).items():
                found[group] = dead | found.get(group, dead)
        return found
    finally:
        model.inputs = inputs


def _dead_units(model: ModelInProof) -> dict[str, Tensor]:
    spec = model.spec
    found: dict[str, Tensor] = {}
    for name, gradient in gradients_of(model, set(spec.axes) - model.tied).items():
        for dim, axis in enumerate(spec.axes[name] if gradient is not None else ()):
            if gradient is None or not axis.groups:
                continue
            moved = gradient.abs().movedim(dim, 0)
            along = moved.reshape(len(moved), -1).amax(1)
            for group in axis.groups:
                own = _largest(along, axis, group, spec.sizes)
                found[group] = own.maximum(found[group]) if group in found else own
    return {g: size <= _NOTHING * size.max() for g, size in found.items() if float(size.max()) > 0}


def _largest(along: Tensor, axis: AxisExpression, group: str, sizes: dict[str, int]) -> Tensor:
    """(width,) the largest of the values along an axis, for each unit."""
    offset, found = 0, along.new_zeros(sizes[group])
    for term in axis.terms:
        shape = [sizes[factor] if isinstance(factor, str) else factor for factor in term]
        part = along[offset : offset + math.prod(shape)]
        offset += math.prod(shape)
        if group in term:
            by_unit = part.reshape(shape).movedim(term.index(group), 0)
            found = found.maximum(by_unit.reshape(sizes[group], -1).amax(1))
    return found
