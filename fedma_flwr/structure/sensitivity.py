"""Sensitivity: an output that does not depend on some units would prove nothing about them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedma_flwr.structure.axes import SpecError
from fedma_flwr.structure.subject import Outputs, Subject

Pair = tuple[str, str]  # group, tensor
# Relative change that counts as one: far above what `TOLERANCE` would let pass as none.
_THRESHOLD = 1e-7
# Pairs that are tried one by one in each draw; the derivative looks at all parameters at once.
_ONE_BY_ONE = 16
# Units of a group that are rotated.
_ROTATED = 16


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
    swaps = {pair: _Swap.draw(subject, pair, generator) for pair in sorted(pairs)}
    by_derivative = _derivative(subject, swaps)
    rest = [pair for pair in swaps if pair not in by_derivative]
    order = torch.randperm(len(rest), generator=generator).tolist()
    tried = [rest[index] for index in order[:_ONE_BY_ONE]]
    changed = {pair for pair in tried if _changes(subject, pair, swaps[pair], reference)}
    if len(changed) == len(tried):
        changed.update(rest)
    return by_derivative | changed


@dataclass(frozen=True)
class _Swap:
    """Some units of a group rotated among themselves, in one tensor: cheap in large tensors."""

    tensor: Tensor
    moves: tuple[tuple[int, Tensor, Tensor], ...]  # axis, positions, what comes to stand there

    @classmethod
    def draw(cls, subject: Subject, pair: Pair, generator: torch.Generator) -> _Swap:
        group, name = pair
        sizes = subject.spec.sizes
        units = torch.randperm(sizes[group], generator=generator)[:_ROTATED]
        rolled = units.roll(1)
        moves = tuple(
            (dim, axis.positions({group: units}, sizes), axis.positions({group: rolled}, sizes))
            for dim, axis in enumerate(subject.spec.axes[name])
            if group in axis.groups
        )
        return cls(subject.tensors[name], moves)

    def moved(self) -> Tensor:
        """The tensor with its units rotated."""
        tensor = self.tensor.clone()
        for dim, places, sources in self.moves:
            tensor.index_copy_(dim, places, tensor.index_select(dim, sources))
        return tensor

    def slope(self, gradient: Tensor) -> float:
        """Derivative of the output towards the rotated tensor."""
        if len(self.moves) > 1:
            return float((gradient * (self.moved() - self.tensor)).sum())
        (dim, places, sources), *_ = self.moves
        old, new = (self.tensor.index_select(dim, index) for index in (places, sources))
        return float((gradient.index_select(dim, places) * (new - old)).sum())


def _changes(subject: Subject, pair: Pair, swap: _Swap, reference: Outputs) -> bool:
    return subject.change({pair[1]: swap.moved()}, reference) > _THRESHOLD


def _derivative(subject: Subject, swaps: dict[Pair, _Swap]) -> set[Pair]:
    """Pairs whose derivative towards the permuted tensor is not zero; one backward pass."""
    names = {name for _, name in swaps} & subject.parameters
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
    except (SpecError, RuntimeError):
        return set()  # what the model does in place has no derivative: pairs are tried one by one
    finally:
        for parameter in leaves.values():
            parameter.requires_grad_(False)
    slopes = dict(zip(leaves, gradients, strict=True))
    return {
        pair
        for pair, swap in swaps.items()
        if (gradient := slopes.get(pair[1])) is not None and abs(swap.slope(gradient)) > _THRESHOLD
    }


def _projection(outputs: Outputs) -> Tensor:
    """A random combination of all output entries, each output at its own scale."""
    generator = torch.Generator().manual_seed(1)
    total = outputs[0].new_zeros(())
    for out in outputs:
        out = torch.where(out.isfinite(), out, 0.0)
        weights = torch.randn(out.shape, generator=generator, dtype=out.dtype)
        total = total + (out * weights).sum() / out.detach().abs().max().clamp(min=1e-300)
    return total
