"""Sensitivity: an output that does not depend on some units would prove nothing about them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedma_flwr.structure.subject import Outputs, Subject

Pair = tuple[str, str]  # group, tensor
# Relative change that counts as one: far above what `TOLERANCE` would let pass as none.
_THRESHOLD = 1e-7
# Pairs that are tried one by one in each draw; the derivative looks at all parameters at once.
_ONE_BY_ONE = 16


def all_pairs(subject: Subject) -> set[Pair]:
    """Every group with every tensor that it is on; tied parameters under one name."""
    names = subject.spec.axes.keys() - subject.tied
    return {(group, name) for name in names for group in subject.spec.tensor_groups(name)}


def sensitive_pairs(subject: Subject, pairs: set[Pair], generator: torch.Generator) -> set[Pair]:
    """The pairs for which the output depends on the order of the group's units in the tensor.

    Parameters
    ----------
    subject : Subject
        The model under test, at drawn weights and inputs.
    pairs : set of (str, str)
        Groups and tensors to look at.
    generator : torch.Generator
        Where permutations come from.

    Returns
    -------
    set of (str, str)
        Pairs for which the output changes when the units are permuted in that tensor alone, or
        begins to change as the tensor is moved towards its permuted self.

    Notes
    -----
    In large models only a random choice of the pairs without a derivative (running statistics) is
    tried; the others count as sensitive if all that were tried are.
    """
    reference = subject.run()
    shifts = {pair: _rotation(subject, pair[0], generator) for pair in sorted(pairs)}
    by_derivative = _derivative(subject, shifts)
    rest = [pair for pair in shifts if pair not in by_derivative]
    order = torch.randperm(len(rest), generator=generator).tolist()
    tried = [rest[index] for index in order[:_ONE_BY_ONE]]
    changed = {pair for pair in tried if _changes(subject, pair, shifts[pair], reference)}
    if len(changed) == len(tried):
        changed.update(rest)
    return by_derivative | changed


def _rotation(subject: Subject, group: str, generator: torch.Generator) -> Tensor:
    """A permutation that moves every unit, unlike some random ones of few units."""
    width = subject.spec.sizes[group]
    return torch.arange(width).roll(int(torch.randint(1, max(width, 2), (1,), generator=generator)))


def _moved(subject: Subject, pair: Pair, order: Tensor) -> Tensor:
    group, name = pair
    return subject.spec.select({name: subject.tensors[name]}, {group: order})[name]


def _changes(subject: Subject, pair: Pair, order: Tensor, reference: Outputs) -> bool:
    return subject.change({pair[1]: _moved(subject, pair, order)}, reference) > _THRESHOLD


def _derivative(subject: Subject, shifts: dict[Pair, Tensor]) -> set[Pair]:
    """Pairs whose derivative towards the permuted tensor is not zero; one backward pass."""
    names = {name for _, name in shifts} & subject.parameters
    own = dict(subject.model.named_parameters())
    leaves = {name: own[name] for name in sorted(names) if own[name].is_floating_point()}
    if not leaves:
        return set()
    for parameter in leaves.values():
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            outputs = [out for out in subject.run() if out.requires_grad]
            if not outputs:
                return set()
            total = _projection(outputs)
            gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    finally:
        for parameter in leaves.values():
            parameter.requires_grad_(False)
    slopes = dict(zip(leaves, gradients, strict=True))
    return {pair for pair, order in shifts.items() if _slope(subject, pair, order, slopes)}


def _slope(
    subject: Subject, pair: Pair, order: Tensor, gradients: Mapping[str, Tensor | None]
) -> bool:
    gradient = gradients.get(pair[1])
    if gradient is None:
        return False
    step = _moved(subject, pair, order) - subject.tensors[pair[1]]
    return abs(float((gradient * step).sum())) > _THRESHOLD


def _projection(outputs: Outputs) -> Tensor:
    """A random combination of all output entries, each output at its own scale."""
    generator = torch.Generator().manual_seed(1)
    total = outputs[0].new_zeros(())
    for out in outputs:
        out = torch.where(out.isfinite(), out, 0.0)
        weights = torch.randn(out.shape, generator=generator, dtype=out.dtype)
        total = total + (out * weights).sum() / out.detach().abs().max().clamp(min=1e-300)
    return total
