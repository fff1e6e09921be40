"""Sensitivity: an output that does not depend on some units would prove nothing about them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import TypeVar

import torch
from torch import Tensor

from fedma_flwr.structure.axes import SpecError
from fedma_flwr.structure.proving.model_in_proof import ModelInProof, Outputs
from fedma_flwr.structure.proving.norm_statistics import DifferentiableStatistics
from fedma_flwr.structure.proving.swaps import THRESHOLD, Move, Pair, Swap, change_of

_Swaps = Mapping[Pair, Swap]
_Moves = dict[tuple[Pair, int], Move]
_Key = TypeVar("_Key")
# In each draw so many pairs are permuted one by one: with a derivative, in small and in large
# models, and without one.
_CONFIRMED, _CONFIRMED_IN_LARGE, _ONE_BY_ONE = 256, 8, 64
# Elements in all tensors of a large model.
_LARGE = 10**6
# So few pairs are permuted one by one at once: other evidence would cost as much.
_FEW = 2


def all_pairs(model: ModelInProof) -> set[Pair]:
    """Every group of several units with every tensor it is on; tied ones under one name."""
    spec = model.spec
    return {
        (group, name)
        for name in spec.axes.keys() - model.tied
        for group in spec.tensor_groups(name)
        if spec.sizes[group] > 1
    }


def sensitive_pairs(
    model: ModelInProof,
    pairs: set[Pair],
    generator: torch.Generator,
    reference: Outputs | None = None,
    *,
    by_trial: bool = True,
) -> set[Pair]:
    """The pairs for which the output depends on the order of the group's units in the tensor.

    Parameters
    ----------
    model : ModelInProof
        The model in proof, at drawn weights and inputs.
    pairs : set of (str, str)
        Groups and tensors to look at.
    generator : torch.Generator
        Where permutations come from.
    reference : list of Tensor, optional
        The output as it is.
    by_trial : bool (default: True)
        Whether pairs are permuted to see whether the output changes also where the derivative
        is known to be zero.

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
    weights, or where permuting that axis alone changes nothing for any weights. The latter is
    excluded for most pairs together: where units are alike, and permuting them changes nothing
    for any weights, the derivatives by them are alike as well. What this does not tell is tried
    one by one. A group that is on one axis of one tensor has nothing else that it could differ
    from. Pairs without a derivative are permuted together, one of each group at a time, and one
    by one where that changes the output.
    """
    if not pairs:
        return set()
    swaps = {pair: Swap.draw(model, pair, generator) for pair in sorted(pairs)}
    sloping, known = _by_derivative(model, swaps)
    doubtful = {pair: swaps[pair] for pair in swaps if pair in sloping and not _alone(model, pair)}
    if len(doubtful) > _FEW:
        doubtful = _not_told_apart(model, doubtful)
    elements = sum(tensor.numel() for tensor in model.tensors.values())
    confirmed = _CONFIRMED if elements < _LARGE else _CONFIRMED_IN_LARGE
    tried = set(_some(list(doubtful), confirmed, generator))
    still = [pair for pair in swaps if pair not in sloping and (by_trial or pair not in known)]
    if (tried or still) and reference is None:
        reference = model.run()
    reference = reference or []
    still = _moved_together(model, {pair: swaps[pair] for pair in still}, reference)
    tried.update(_some(still, _ONE_BY_ONE, generator))
    changed = {pair for pair in sorted(tried) if swaps[pair].changes(model, reference)}
    return (sloping - tried) | changed


def _alone(model: ModelInProof, pair: Pair) -> bool:
    """Whether a group is on one axis of one tensor only."""
    group, spec = pair[0], model.spec
    names = spec.axes.keys() - model.tied
    return sum(group in axis.groups for name in names for axis in spec.axes[name]) == 1


def _some(pairs: list[Pair], count: int, generator: torch.Generator) -> list[Pair]:
    order = torch.randperm(len(pairs), generator=generator).tolist()
    return [pairs[index] for index in order[:count]]


def _by_derivative(model: ModelInProof, swaps: _Swaps) -> tuple[set[Pair], set[Pair]]:
    """Pairs whose derivative towards the permuted tensor is not zero, and all that have one."""
    slopes = gradients_of(model, {name for _, name in swaps})
    known = {pair: gradient for pair in swaps if (gradient := slopes.get(pair[1])) is not None}
    return {pair for pair in known if swaps[pair].slope(known[pair]) > THRESHOLD}, set(known)


def _not_told_apart(model: ModelInProof, swaps: _Swaps) -> dict[Pair, Swap]:
    """The pairs of which it is not shown that units which are alike have unlike derivatives."""
    left = {(pair, at): move for pair, swap in swaps.items() for at, move in enumerate(swap.moves)}
    for chosen in _choices(left):
        if len(left) <= _FEW or not chosen:
            continue
        with ExitStack() as alike:
            for move in chosen.values():
                alike.enter_context(move.alike())
            gradients = gradients_of(model, {pair[1] for pair, _ in chosen})
            for key, move in chosen.items():
                gradient = gradients.get(key[0][1])
                if gradient is not None and move.tells_apart(gradient):
                    del left[key]
    return {pair: swaps[pair] for pair in swaps if any(key[0] == pair for key in left)}


def _choices(moves: _Moves) -> Iterator[_Moves]:
    """Moves that are left, some of each group: if all its units are alike, nothing differs.

    First what makes units, then what reads them; of groups that nothing reads (what attention
    multiplies), one half and then the other.
    """
    made = {key for key, move in moves.items() if move.makes}
    read = {key[0][0] for key in moves.keys() - made}
    first = _first_halves(moves)
    yield {k: m for k, m in moves.items() if k in (made if k[0][0] in read else first)}
    yield {k: m for k, m in moves.items() if k not in (made if k[0][0] in read else first)}
    first = _first_halves(moves)
    yield {key: move for key, move in moves.items() if key in first}
    yield {key: move for key, move in moves.items() if key not in first}


def _first_halves(moves: _Moves) -> set[tuple[Pair, int]]:
    groups = _by_group(moves, lambda key: key[0][0])
    return {key for keys in groups for key in keys[: (len(keys) + 1) // 2]}


def _by_group(keys: Iterable[_Key], group: Callable[[_Key], str]) -> list[list[_Key]]:
    found: dict[str, list[_Key]] = defaultdict(list)
    for key in keys:
        found[group(key)].append(key)
    return list(found.values())


def _moved_together(model: ModelInProof, swaps: _Swaps, reference: Outputs) -> list[Pair]:
    """The pairs that may change the output: those that do not, many at once, are left out.

    Of each group one pair at a time is permuted, since all tensors of a group together change
    nothing.
    """
    found = [pair for pair, swap in swaps.items() if len(swap.moves) > 1]
    single = [pair for pair, swap in swaps.items() if len(swap.moves) == 1]
    groups = _by_group(single, lambda pair: pair[0])
    for at in range(max(map(len, groups), default=0)):
        together = [own[at] for own in groups if at < len(own)]
        moves = [swaps[pair].moves[0] for pair in together]
        if len(together) == 1 or change_of(moves, model, reference):
            found += together
    return found


def gradients_of(model: ModelInProof, wanted: set[str]) -> dict[str, Tensor | None]:
    """Derivatives of a random combination of all outputs; one backward pass."""
    own = {**dict(model.module.named_parameters()), **dict(model.module.named_buffers())}
    names = sorted(wanted & own.keys())
    leaves = {name: own[name] for name in names if own[name].is_floating_point()}
    if not leaves:
        return {}
    for leaf in leaves.values():
        leaf.requires_grad_(True)
    try:
        with torch.enable_grad(), DifferentiableStatistics():
            outputs = [out for out in model.run() if out.requires_grad]
            if not outputs:
                return {}
            total = _projection(outputs)
            gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    except (SpecError, RuntimeError):
        return {}  # what the model does in place has no derivative: pairs are tried one by one
    finally:
        for leaf in leaves.values():
            leaf.detach_().requires_grad_(False)  # what is written in place is no leaf
    return dict(zip(leaves, gradients, strict=True))


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
