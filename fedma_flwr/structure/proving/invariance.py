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
from fedma_flwr.structure.proving.model_in_proof import ModelInProof, Outputs, relative_change

# Largest relative change of the output, in float64, that counts as none.
TOLERANCE = 1e-9
# Elements of a tensor that rounding errors are put into.
_SMALL = 2**14


def check_invariance(model: ModelInProof, reference: Outputs, generator: torch.Generator) -> float:
    """Permute all groups at once, in two ways; the largest relative change of the output.

    Parameters
    ----------
    model : ModelInProof
        The model in proof.
    reference : list of Tensor
        Its output as it is.
    generator : torch.Generator
        Where permutations come from.

    Raises
    ------
    SpecError
        If it is more than rounding errors; the message names the group and tensor.
    """
    worst, permutations = _worst_change(model, reference, generator)
    if permutations is not None:
        raise SpecError(diagnose(model, reference, TOLERANCE, permutations))
    return worst


def check_where_it_runs(
    model: ModelInProof, reference: Outputs, generator: torch.Generator
) -> tuple[Outputs | None, float]:
    """Check invariance in a mode, or on inputs, in which a model may give other numbers each time.

    Returns
    -------
    list of Tensor or None
        `reference`, the output as it is; None if it is not repeatable, or chaotic, so that nothing
        can be compared. What permutations do not change needs no look at that.
    float
        The largest relative change.

    Raises
    ------
    SpecError
        As `check_invariance`.
    """
    worst, permutations = _worst_change(model, reference, generator)
    if permutations is None:
        return reference, worst
    if not is_comparable(model, reference, generator):
        return None, 0.0
    raise SpecError(diagnose(model, reference, TOLERANCE, permutations))


def _worst_change(
    model: ModelInProof, reference: Outputs, generator: torch.Generator
) -> tuple[float, dict[str, Tensor] | None]:
    """Largest change, and the permutations that change too much, if any do."""
    worst = 0.0
    for permutations in generating_permutations(model.spec.sizes, generator):
        change = relative_change(model.permuted(permutations), reference)
        if not change < TOLERANCE:
            return change, permutations
        worst = max(worst, change)
    return worst, None


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


def is_chaotic(model: ModelInProof, reference: Outputs, generator: torch.Generator) -> bool:
    """Whether rounding errors of inputs and small tensors alone come near the tolerance."""
    inputs = model.inputs

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
    inputs, worst = model.inputs, 0.0
    try:
        for example in inputs:
            model.inputs = [with_another_batch(example)]
            if (output := run_or_none(model)) is not None:
                worst = max(worst, check_where_it_runs(model, output, generator)[1])
        return worst
    finally:
        model.inputs = inputs


def run_or_none(model: ModelInProof) -> Outputs | None:
    """The output; None where the model does not run or the output is not finite throughout."""
    try:
        outputs = model.run()
    except SpecError:
        return None
    finite = all(not out.is_floating_point() or bool(out.isfinite().all()) for out in outputs)
    return outputs if finite else None


def is_comparable(model: ModelInProof, reference: Outputs, generator: torch.Generator) -> bool:
    """Whether the model gives this output again, also with rounding errors in what it reads."""
    return is_repeatable(model, reference) and not is_chaotic(model, reference, generator)


def is_repeatable(model: ModelInProof, reference: Outputs) -> bool:
    """Whether the model gives the same output again."""
    try:
        return relative_change(model.run(), reference) == 0.0
    except SpecError:
        return False
