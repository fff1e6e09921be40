"""Sensitivity: an output that does not depend on some units would prove nothing about them."""

from __future__ import annotations

import torch
from torch import Tensor

from fedma_flwr.structure.spec import PermutationSpec
from fedma_flwr.structure.subject import Outputs, Subject

Pair = tuple[str, str]  # group, tensor
# Relative change that counts as one: far above what `TOLERANCE` would let pass as none.
_THRESHOLD = 1e-7
# Pairs that are tried one by one in each draw; the derivative looks at all parameters at once.
_ONE_BY_ONE = 48


def all_pairs(spec: PermutationSpec) -> set[Pair]:
    """Every group with every tensor that it is on."""
    return {(group, name) for name in spec.axes for group in spec.tensor_groups(name)}


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
    moved = {pair: _permute_one(subject, pair, generator) for pair in sorted(pairs)}
    by_derivative = _derivative(subject, moved)
    rest = [pair for pair in moved if pair not in by_derivative]
    order = torch.randperm(len(rest), generator=generator).tolist()
    tried = [rest[index] for index in order[:_ONE_BY_ONE]]
    changed = {pair for pair in tried if _changes(subject, pair, moved[pair], reference)}
    if len(changed) == len(tried):
        changed.update(rest)
    return by_derivative | changed


def _permute_one(subject: Subject, pair: Pair, generator: torch.Generator) -> Tensor:
    group, name = pair
    # A rotation moves every unit, unlike a random permutation of few.
    width = subject.spec.sizes[group]
    shift = int(torch.randint(1, max(width, 2), (1,), generator=generator))
    units = {group: torch.arange(width).roll(shift)}
    return subject.spec.select({name: subject.tensors[name]}, units)[name]


def _changes(subject: Subject, pair: Pair, moved: Tensor, reference: Outputs) -> bool:
    return subject.change({pair[1]: moved}, reference) > _THRESHOLD


def _derivative(subject: Subject, moved: dict[Pair, Tensor]) -> set[Pair]:
    """Pairs whose derivative towards the permuted tensor is not zero; one backward pass."""
    names = {name for _, name in moved}
    leaves = {
        name: parameter
        for name, parameter in subject.model.named_parameters(remove_duplicate=False)
        if name in names and parameter.is_floating_point()
    }
    if not leaves:
        return set()
    for parameter in leaves.values():
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            outputs = [out for out in subject.run() if out.requires_grad]
            if not outputs:
                return set()
            total, scale = _projection(outputs)
            gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    finally:
        for parameter in leaves.values():
            parameter.requires_grad_(False)
    found = set()
    for name, gradient in zip(leaves, gradients, strict=True):
        for pair in [pair for pair in moved if pair[1] == name and gradient is not None]:
            slope = float((gradient * (moved[pair] - subject.tensors[name])).sum())
            if abs(slope) > _THRESHOLD * scale:
                found.add(pair)
    return found


def _projection(outputs: Outputs) -> tuple[Tensor, float]:
    """A random combination of all output entries, each output at its own scale."""
    generator = torch.Generator().manual_seed(1)
    total = outputs[0].new_zeros(())
    for out in outputs:
        out = torch.where(out.isfinite(), out, 0.0)
        weights = torch.randn(out.shape, generator=generator, dtype=out.dtype)
        total = total + (out * weights).sum() / out.detach().abs().max().clamp(min=1e-300)
    return total, 1.0
