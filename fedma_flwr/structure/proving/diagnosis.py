"""Find out which group and which tensor of a wrong spec are to blame."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from fedma_flwr.structure.axes import AxisExpression
from fedma_flwr.structure.proving.model_in_proof import ModelInProof, Outputs
from fedma_flwr.structure.unit_selection import take_units

# Other readings of axes that are tried before giving up on naming a single tensor.
_MAX_READINGS = 200


def diagnose(
    model: ModelInProof, reference: Outputs, tolerance: float, permutations: Mapping[str, Tensor]
) -> str:
    """Explain why permuting all groups changes the output.

    Parameters
    ----------
    model : ModelInProof
        The model in proof, at weights for which the spec was found to be wrong.
    reference : list of Tensor
        Its output.
    tolerance : float
        Relative change that counts as none.
    permutations : mapping of str to Tensor
        The permutation of every group that changes the output.
    """
    spec = model.spec
    for group, order in permutations.items():
        touched = {n: t for n, t in model.tensors.items() if group in spec.tensor_groups(n)}
        moved = spec.select(touched, {group: order})
        change = model.change(moved, reference)
        if change < tolerance:
            continue
        tensors = ", ".join(repr(name) for name in moved)
        message = (
            f"Permuting the units of group {group!r} in {tensors} changes the output by "
            f"{change:.1%}, so that the spec is wrong"
        )
        for name, axes, hint in _readings(model, group):
            other = take_units(model.tensors[name], axes, {group: order}, spec.sizes)
            if model.change({**moved, name: other}, reference) < tolerance:
                return f"{message}: tensor {name!r} [{spec.describe(name)}] {hint}."
        return f"{message}; no change to a single tensor's axes would mend it."
    return "Permuting all groups at once changes the output, though none does by itself."


def _readings(
    model: ModelInProof, group: str
) -> Iterator[tuple[str, tuple[AxisExpression, ...], str]]:
    """Other axes for single tensors: without the group, or with it in another place."""
    spec, width = model.spec, model.spec.sizes[group]
    count = 0
    for name, axes in spec.axes.items():
        for dim, axis in enumerate(axes):
            length = axis.size(spec.sizes)
            texts = [str(length)] if group in axis.groups else []
            if width and length % width == 0:
                block = length // width
                texts += [group] if block == 1 else [f"{group} x {block}", f"{block} x {group}"]
            for text in texts:
                other = AxisExpression.parse(text)
                if other != axis and count < _MAX_READINGS:
                    count += 1
                    fixed = (*axes[:dim], other, *axes[dim + 1 :])
                    yield name, fixed, f"does not fit; '{text}' on axis {dim} would"
