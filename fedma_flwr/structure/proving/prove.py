"""Prove a spec numerically: invariance, sensitivity, growability."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from fedma_flwr.structure.axes import AxisExpression, SpecError
from fedma_flwr.structure.model_copies import quiet
from fedma_flwr.structure.proving.diagnosis import diagnose
from fedma_flwr.structure.proving.drawing import ATTEMPTS, redraw, with_another_batch
from fedma_flwr.structure.proving.growability import why_not_growable
from fedma_flwr.structure.proving.model_under_test import Subject, relative_change
from fedma_flwr.structure.proving.sensitivity import Pair, all_pairs, sensitive_pairs
from fedma_flwr.structure.spec import PermutationSpec
from fedma_flwr.structure.unit_groups import UnitGroup

# Largest relative change of the output, in float64, that counts as none.
TOLERANCE = 1e-9
# Memory that a proof takes for a parameter, measured: weights and their derivatives in float64,
# permuted and as they were, beside the model itself.
_BYTES_PER_PARAMETER = 42
# Elements of a tensor that rounding errors are put into.
_SMALL = 2**14


@dataclass(frozen=True)
class SpecProof:
    """What was proven about a spec.

    Parameters
    ----------
    spec : PermutationSpec
        The spec with `growable` and `reason` of every group as they were found.
    invariance : float
        Largest relative change of the output under random permutations of all groups at once.
    inert : tuple of (str, str)
        Groups and tensors where no weights were found for which the output depends on the order
        of the units in that tensor: the bias of an attention's keys, for example.
    """

    spec: PermutationSpec
    invariance: float
    inert: tuple[Pair, ...] = ()

    @property
    def growable(self) -> tuple[str, ...]:
        """The groups that zero-padded units may be added to."""
        return tuple(name for name, group in self.spec.groups.items() if group.growable)


@quiet()
def prove_spec(
    spec: PermutationSpec,
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    *,
    seed: int = 0,
    drop_unused: bool = False,
) -> SpecProof:
    """Prove that a spec is right for a model.

    Weights, running statistics and inputs are drawn anew until the output depends on every group;
    for each draw, random permutations of all groups at once must leave the output unchanged. Then
    zero-padded units are added to every group; where that changes the output, or the model does
    not run, the group must keep its width. Where the model runs in training mode (without dropout)
    or on a larger batch, invariance is proven there too: branches that only training takes count.

    Parameters
    ----------
    spec : PermutationSpec
        The spec, derived or written by hand.
    model : nn.Module
        The model. It is copied, never changed.
    example_inputs : tuple
        Inputs as in ``model(*example_inputs)``; their shapes and types matter, and integers stay
        in range.
    seed : int (default: 0)
        Seed of all draws. The global random generator is left alone.
    drop_unused : bool (default: False)
        Whether to drop groups that the output does not depend on instead of refusing them.

    Returns
    -------
    SpecProof
        With the spec to use from then on.

    Raises
    ------
    SpecError
        If the spec does not fit the model's tensors, if permuting a group changes the output, or
        if the output does not depend on a group. The message names the group and tensor. Also if
        the machine has less memory than the proof takes.
    """
    _check_memory(model)
    generator = torch.Generator().manual_seed(seed)
    subject = Subject(spec, model, example_inputs)
    pending, worst = _try_draws(subject, generator)
    unused = [g for g in spec.groups if all(pair in pending for pair in _pairs_of(spec, g))]
    if unused and not drop_unused:
        raise SpecError(
            f"The model's output does not depend on the units of {unused}, for any weights and "
            f"inputs tried; tensors: {sorted({t for g, t in pending if g in unused})}."
        )
    spec = without_groups(spec, unused, "the output does not depend on it")
    subject.spec = spec
    inert = tuple(sorted(pair for pair in pending if pair[0] not in unused))
    return SpecProof(
        _with_growth(spec, why_not_growable(subject, TOLERANCE, generator)), worst, inert
    )


def _check_memory(model: nn.Module) -> None:
    """Refuse what would end with this process being killed."""
    count = sum(parameter.numel() for parameter in model.parameters())
    needed, has = count * _BYTES_PER_PARAMETER, _physical_memory()
    if has is not None and needed > has:
        raise SpecError(
            f"A proof for {count / 1e6:.0f} million parameters takes about {needed / 1e9:.1f} GB "
            f"of memory and this machine has {has / 1e9:.1f} GB. Derive and prove the spec on a "
            "larger one, keep its `to_json()`, and give it to FedMA as `spec`, without `model`."
        )


def _physical_memory() -> int | None:
    """The machine's memory in bytes; None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _try_draws(subject: Subject, generator: torch.Generator) -> tuple[set[Pair], float]:
    """Draw until the output depends on all pairs; those left, and the largest relative change.

    The subject is left at the last draw that was good for anything.
    """
    pending, worst = all_pairs(subject), 0.0
    good: tuple[int, Tensor] | None = None
    for attempt in range(ATTEMPTS):
        before = generator.get_state()
        if not redraw(subject, attempt, generator) or _is_chaotic(subject, generator):
            continue
        good = attempt, before
        worst = max(worst, _check_invariance(subject, generator))
        pending -= sensitive_pairs(subject, pending, generator)
        if not pending:
            break
    if good is None:
        raise SpecError(
            "For all weights and inputs tried, the model's output is not finite, or so unstable "
            "that rounding errors change it: nothing can be proven about the model."
        )
    if attempt != good[0]:
        generator.set_state(good[1])
        redraw(subject, good[0], generator)
    worst = max(worst, _check_another_batch(subject, generator))
    subject.training = True
    if _is_repeatable(subject) and not _is_chaotic(subject, generator):
        worst = max(worst, _check_invariance(subject, generator))
        pending -= sensitive_pairs(subject, pending, generator)
    subject.training = False
    return pending, worst


def _pairs_of(spec: PermutationSpec, group: str) -> Iterable[Pair]:
    return ((group, name) for name in spec.axes if group in spec.tensor_groups(name))


def _is_chaotic(subject: Subject, generator: torch.Generator) -> bool:
    """Whether rounding errors of inputs and small tensors alone come near the tolerance."""
    reference, inputs = subject.run(), subject.inputs

    def shake(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float64:
            return value
        noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
        return value * (1 + 1e-15 * noise)

    small = {n: shake(t) for n, t in subject.tensors.items() if t.numel() <= _SMALL}
    subject.inputs = tree_map(shake, inputs)
    change = subject.change(small, reference)
    subject.inputs = inputs
    return not change <= TOLERANCE / 10


def _check_another_batch(subject: Subject, generator: torch.Generator) -> float:
    """Code may take another way for a batch of another size; where it runs, it is tried."""
    inputs = subject.inputs
    subject.inputs = with_another_batch(inputs)
    try:
        return _check_invariance(subject, generator) if _is_repeatable(subject) else 0.0
    finally:
        subject.inputs = inputs


def _is_repeatable(subject: Subject) -> bool:
    """Whether the model runs in this mode on these inputs, and twice with the same result."""
    try:
        first, second = subject.run(), subject.run()
    except SpecError:
        return False
    finite = all(not out.is_floating_point() or bool(out.isfinite().all()) for out in first)
    return finite and relative_change(first, second) == 0.0


def _check_invariance(subject: Subject, generator: torch.Generator) -> float:
    reference = subject.run()
    worst = 0.0
    for permutations in generating_permutations(subject.spec.sizes, generator):
        change = relative_change(subject.permuted(permutations), reference)
        if not change < TOLERANCE:
            raise SpecError(diagnose(subject, reference, TOLERANCE, permutations))
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


def without_groups(spec: PermutationSpec, groups: Iterable[str], reason: str) -> PermutationSpec:
    """The spec with some groups turned into fixed sizes.

    Parameters
    ----------
    spec : PermutationSpec
        The spec.
    groups : iterable of str
        The groups to drop.
    reason : str
        Why, for `PermutationSpec.pinned`.
    """
    dropped = set(groups)
    if not dropped:
        return spec

    def fix(axis: AxisExpression) -> AxisExpression:
        return AxisExpression(
            tuple(
                tuple(spec.sizes[f] if isinstance(f, str) and f in dropped else f for f in term)
                for term in axis.terms
            )
        )

    pinned = {
        f"{name}[{dim}]": reason
        for name, axes in spec.axes.items()
        for dim, axis in enumerate(axes)
        if axis.groups & dropped
    }
    axes = {name: tuple(fix(axis) for axis in own) for name, own in spec.axes.items()}
    statistics = [n for n in spec.statistics if any(axis.groups for axis in axes[n])]
    return PermutationSpec(
        groups={name: group for name, group in spec.groups.items() if name not in dropped},
        axes=axes,
        outputs=spec.outputs,
        statistics=statistics,
        head=spec.head,
        pinned={**spec.pinned, **pinned},
        variances={n: mean for n, mean in spec.variances.items() if n in statistics},
    )


def _with_growth(spec: PermutationSpec, reasons: Mapping[str, str]) -> PermutationSpec:
    groups: dict[str, UnitGroup] = {}
    for name, group in spec.groups.items():
        if group.growable and name in reasons:
            group = replace(group, growable=False, reason=reasons[name])
        groups[name] = group
    return replace(spec, groups=groups)
