"""Invariance: permuting the units of all groups at once must leave the output unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fedma_flwr.structure.axes import SpecError
from fedma_flwr.structure.proving.diagnosis import diagnose
from fedma_flwr.structure.proving.drawing import with_another_batch
from fedma_flwr.structure.proving.model_in_proof import ModelInProof, relative_change

# Largest relative change of the output, in float64, that counts as none.
TOLERANCE = 1e-9
# Elements of a tensor that rounding errors are put into.
_SMALL = 2**14


def check_invariance(model: ModelInProof, generator: torch.Generator) -> float:
    """Permute all groups at once, in two ways; the largest relative change of the output.

    Raises
    ------
    SpecError
        If it is more than rounding errors; the message names the group and tensor.
    """
    reference = model.run()
    worst = 0.0
    for permutations in generating_permutations(model.spec.sizes, generator):
        change = relative_change(model.permuted(permutations), reference)
        if not change < TOLERANCE:
            raise SpecError(diagnose(model, reference, TOLERANCE, permutations))
        worst = max(worst, change)
    return worst


def generating_permutations(
    sizes: Mapping[str, int], generator: torch.Generator
) -> tuple[dict[str, Tensor], ...]:
    """Two permutations of each group that generate all others.

    Parameters
    ----------
    sizes : mapping of str to int
        The width of every group.
    generator : torch.Generator
        Where the permutations come from.

    Returns
    -------
    tuple of two dict of str to Tensor
        For each group a cycle through all its units in random order, and the transposition of two
        neighbours in that cycle. A single random permutation could be the identity, as every
        second one of two units is, and what is merely cyclic survives every cycle of three.
    """
    cycles, swaps = {}, {}
    for group, size in sizes.items():
        order = torch.randperm(size, generator=generator)
        cycles[group] = torch.empty_like(order).index_copy_(0, order, order.roll(1))
        swaps[group] = torch.arange(size).index_copy_(0, order[:2], order[:2].flip(0))
    return (cycles, swaps) if cycles else ()


def is_chaotic(model: ModelInProof, generator: torch.Generator) -> bool:
    """Whether rounding errors of inputs and small tensors alone come near the tolerance."""
    reference, inputs = model.run(), model.inputs

    def shake(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float64:
            return value
        noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
        return value * (1 + 1e-15 * noise)

    small = {n: shake(t) for n, t in model.tensors.items() if t.numel() <= _SMALL}
    model.inputs = tree_map(shake, inputs)
    change = model.change(small, reference)
    model.inputs = inputs
    return not change <= TOLERANCE / 10


def check_another_batch(model: ModelInProof, generator: torch.Generator) -> float:
    """Code may take another way for a batch of another size; where it runs, it is tried."""
    inputs = model.inputs
    model.inputs = with_another_batch(inputs)
    try:
        return check_invariance(model, generator) if is_repeatable(model) else 0.0
    finally:
        model.inputs = inputs


def is_repeatable(model: ModelInProof) -> bool:
    """Whether the model runs in this mode on these inputs, and twice with the same result."""
    try:
        first, second = model.run(), model.run()
    except SpecError:
        return False
    finite = all(not out.is_floating_point() or bool(out.isfinite().all()) for out in first)
    return finite and relative_change(first, second) == 0.0
