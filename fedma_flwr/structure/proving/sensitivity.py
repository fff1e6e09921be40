"""Sensitivity: an output that does not depend on some units would prove nothing about them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedma_flwr.structure.axes import SpecError
from fedma_flwr.structure.proving.model_in_proof import ModelInProof, Outputs, relative_change
from fedma_flwr.structure.proving.norm_statistics import DifferentiableStatistics

Pair = tuple[str, str]  # group, tensor
# Relative change that counts as one: far above what `TOLERANCE` would let pass as none.
_THRESHOLD = 1e-7
# In each draw so many pairs are permuted one by one: with a derivative, in small and in large
# models, and without one.
_CONFIRMED, _CONFIRMED_IN_LARGE, _ONE_BY_ONE = 256, 8, 64
# Elements in all tensors of a large model.
_LARGE = 10**6
# Units of a group that are rotated.
_ROTATED = 16


def all_pairs(model: ModelInProof) -> set[Pair]:
    """Every group of several units with every tensor it is on; tied ones under one name."""
    spec = model.spec
    return {
        (group, name)
        for name in spec.axes.keys() - model.tied
        for group in spec.tensor_groups(name)
        if spec.sizes[group] > 1
    }


def sensitive_pairs(model: ModelInProof, pairs: set[Pair], generator: torch.Generator) -> set[Pair]:
    """The pairs for which the output depends on the order of the group's units in the tensor.

    Parameters
    ----------
    model : ModelInProof
        The model in proof, at drawn weights and inputs.
    pairs : set of (str, str)
        Groups and tensors to look at.
    generator : torch.Generator
        Where permutations come from.

    Returns
    -------
    set of (str, str)
        Pairs for which the output changes when the units are permuted on any one axis of that
        tensor alone, or begins to change as the tensor is moved towards its permuted self. Pairs
        that were neither differentiated nor tried are not among them.

    Notes
    -----
    Each trial by itself takes a run, all derivatives together take one run and its backward pass.
    A derivative is as strong: the output as a function of the step towards the permuted tensor is
    not constant, and then it takes the same value at the end of the way only for exceptional
    weights, or where permuting that axis alone changes nothing for any weights. To find the
    latter, a random choice of the pairs is tried and counts only if the output does change;
    a group that is on one axis of one tensor has nothing else that it could differ from.
    """
    if not pairs:
        return set()
    reference = model.run()
    swaps = {pair: _Swap.draw(model, pair, generator) for pair in sorted(pairs)}
    by_derivative = _derivative(model, swaps)
    alone = {pair for pair in pairs if _is_alone(model, pair)}
    elements = sum(tensor.numel() for tensor in model.tensors.values())
    confirmed = _CONFIRMED if elements < _LARGE else _CONFIRMED_IN_LARGE
    tried = {
        *_some([p for p in swaps if p in by_derivative - alone], confirmed, generator),
        *_some([p for p in swaps if p not in by_derivative], _ONE_BY_ONE, generator),
    }
    changed = {pair for pair in sorted(tried) if swaps[pair].changes(model, reference)}
    return (by_derivative - tried) | changed


def _is_alone(model: ModelInProof, pair: Pair) -> bool:
    """Whether a group is on one axis of one tensor only."""
    group, spec = pair[0], model.spec
    names = spec.axes.keys() - model.tied
    return sum(group in axis.groups for name in names for axis in spec.axes[name]) == 1


def _some(pairs: list[Pair], count: int, generator: torch.Generator) -> list[Pair]:
    order = torch.randperm(len(pairs), generator=generator).tolist()
    return [pairs[index] for index in order[:count]]


@dataclass(frozen=True)
class _Swap:
    """Some units of a group rotated among themselves, in one tensor: cheap in large tensors."""

    tensor: Tensor
    moves: tuple[tuple[int, Tensor, Tensor], ...]  # axis, positions, what comes to stand there

    @classmethod
    def draw(cls, model: ModelInProof, pair: Pair, generator: torch.Generator) -> _Swap:
        group, name = pair
        sizes = model.spec.sizes
        units = torch.randperm(sizes[group], generator=generator)[:_ROTATED]
        rolled = units.roll(1)
        moves = tuple(
            (dim, axis.positions({group: units}, sizes), axis.positions({group: rolled}, sizes))
            for dim, axis in enumerate(model.spec.axes[name])
            if group in axis.groups
        )
        return cls(model.tensors[name], moves)

    def changes(self, model: ModelInProof, reference: Outputs) -> bool:
        """Whether the output changes when the units are rotated on any one axis alone."""
        return all(self._changes(model, reference, *move) for move in self.moves)

    def _changes(
        self, model: ModelInProof, reference: Outputs, dim: int, places: Tensor, sources: Tensor
    ) -> bool:
        tensor = self.tensor
        tensor.index_copy_(dim, places, tensor.index_select(dim, sources))
        try:
            return relative_change(model.run(), reference) > _THRESHOLD
        finally:
            tensor.index_copy_(dim, sources, tensor.index_select(dim, places))

    def slope(self, gradient: Tensor) -> float:
        """Least derivative of the output towards the tensor rotated on one axis."""
        return min(abs(self._slope(gradient, *move)) for move in self.moves)

    def _slope(self, gradient: Tensor, dim: int, places: Tensor, sources: Tensor) -> float:
        old, new = (self.tensor.index_select(dim, index) for index in (places, sources))
        return float((gradient.index_select(dim, places) * (new - old)).sum())


def _derivative(model: ModelInProof, swaps: dict[Pair, _Swap]) -> set[Pair]:
    """Pairs whose derivative towards the permuted tensor is not zero; one backward pass."""
    own = {**dict(model.module.named_parameters()), **dict(model.module.named_buffers())}
    names = sorted({name for _, name in swaps} & own.keys())
    leaves = {name: own[name] for name in names if own[name].is_floating_point()}
    if not leaves:
        return set()
    for leaf in leaves.values():
        leaf.requires_grad_(True)
    try:
        with torch.enable_grad(), DifferentiableStatistics():
            outputs = [out for out in model.run() if out.requires_grad]
            if not outputs:
                return set()
            total = _projection(outputs)
            gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    except (SpecError, RuntimeError):
        return set()  # what the model does in place has no derivative: pairs are tried one by one
    finally:
        for leaf in leaves.values():
            leaf.detach_().requires_grad_(False)  # what is written in place is no leaf
    slopes = dict(zip(leaves, gradients, strict=True))
    return {
        pair
        for pair, swap in swaps.items()
        if (gradient := slopes.get(pair[1])) is not None and swap.slope(gradient) > _THRESHOLD
    }


def _projection(outputs: Outputs) -> Tensor:
    """A random combination of all output entries, each output at its own scale."""
    generator = torch.Generator().manual_seed(1)
    total = outputs[0].new_zeros(())
    for out in outputs:
        out = torch.view_as_real(out) if out.is_complex() else out
        out = torch.where(out.isfinite(), out, 0.0)
        weights = torch.randn(out.shape, generator=generator, dtype=out.dtype)
        total = total + (out * weights).sum() / out.detach().abs().max().clamp(min=1e-300)
    return total
