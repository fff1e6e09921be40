"""The server's arithmetic of one stage: match the groups, average what settles. No Flower here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor

from fedma_flwr import statistics
from fedma_flwr.matching import Matcher, Matching
from fedma_flwr.robust import Averaging, cap_counts, scale_down
from fedma_flwr.structure import (
    PermutationSpec,
    PlannedStage,
    set_signature,
    signature,
    signature_tensors,
)

PLAIN = Averaging()


@dataclass(frozen=True)
class ClientUpdate:
    """What one client sent at the end of a stage.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        The stage's uploads: at the global widths along groups matched in earlier stages, at the
        client's own widths along the groups of this stage.
    examples : float
        The client's weight in sample-weighted means (its number of training examples).
    class_counts : Tensor, optional
        (outputs,) training examples of each class.
    """

    tensors: Mapping[str, Tensor]
    examples: float
    class_counts: Tensor | None = None


@dataclass(frozen=True)
class StageOutcome:
    """What the server knows after a stage.

    Parameters
    ----------
    tensors : dict of str to Tensor
        The settled tensors at the global widths.
    assignments : tuple of dict of str to Tensor
        For each client the (n,) global unit of each of its units, by group.
    widths : dict of str to int
        Global width of the groups matched in this stage.
    matchings : dict of str to Matching
        The matcher's results by group.
    head_by_class : bool
        Whether the head was averaged by class counts (False also when there is no head here).
    """

    tensors: dict[str, Tensor]
    assignments: tuple[dict[str, Tensor], ...]
    widths: dict[str, int] = field(default_factory=dict)
    matchings: dict[str, Matching] = field(default_factory=dict)
    head_by_class: bool = False


def settle_stage(
    spec: PermutationSpec,
    stage: PlannedStage,
    updates: Sequence[ClientUpdate],
    *,
    matched: frozenset[str],
    matcher: Matcher,
    max_widths: Mapping[str, int],
    weighted: bool = False,
    averaging: Averaging = PLAIN,
    seed: int = 0,
    known: Mapping[str, Matcher] | None = None,
) -> StageOutcome:
    """Match the groups of a stage across clients and average the tensors that settle.

    Units are averaged over the clients that hold them; where two matched axes meet (recurrent
    weights, layers bundled in one stage), over the clients that hold the pair. The head is
    averaged row by row with weights ``n_jc / sum_j n_jc`` (Wang et al., 2020, section 2.2).
    Running variances are pooled: they include what the clients' means differ.

    Parameters
    ----------
    spec : PermutationSpec
        The model's spec.
    stage : PlannedStage
        The stage that ends.
    updates : sequence of ClientUpdate
        One a client, in the order in which the matcher shall see them; at least one.
    matched : frozenset of str
        Groups matched in earlier stages of the round.
    matcher : Matcher
        Finds the assignments of one group: a dataclass with a field `max_width`.
    max_widths : mapping of str to int
        The most units that each group may have.
    weighted : bool (default: False)
        Weigh clients by their examples when matched units are averaged, instead of equally.
    averaging : Averaging (default: the mean)
        How the clients' values of an entry become one; the weights are the same for all kinds.
    seed : int (default: 0)
        Seed of the matcher's client orders.
    known : mapping of str to Matcher, optional
        What takes the matcher's place in single groups: matchings that are known already.

    Returns
    -------
    StageOutcome
        Settled tensors in the dtype of the uploads.
    """
    like = updates[0].tensors
    updates = [replace(u, tensors=statistics.to_moments(spec, u.tensors)) for u in updates]
    wide = [dict(update.tensors) for update in updates]
    if averaging.robust:
        wide = scale_down(wide, [n for n in like if _is_weight(spec, n, like[n])])
    assignments: list[dict[str, Tensor]] = [{} for _ in updates]
    widths: dict[str, int] = {}
    matchings: dict[str, Matching] = {}
    rows: dict[str, tuple[str, ...]] = {}
    weights = [update.examples if weighted else 1.0 for update in updates]
    for number, group in enumerate(stage.groups):
        rows[group] = signature_tensors(spec, group, matched | widths.keys())
        units = [signature(spec, group, rows[group], tensors).numpy() for tensors in wide]
        chosen = (known or {}).get(group, matcher)
        limited: Matcher = replace(cast(Any, chosen), max_width=max_widths[group])
        matching = limited.match(units, weights=weights if weighted else None, seed=seed + number)
        widths[group], matchings[group] = len(matching.units), matching
        for client, assignment in enumerate(matching.assignments):
            assignments[client][group] = torch.as_tensor(assignment, dtype=torch.int64)
            wide[client] = _expand_group(spec, group, wide[client], assignments[client], widths)
    settled = {
        name: _average_units(
            spec,
            name,
            wide=wide,
            assignments=assignments,
            widths=widths,
            weights=weights,
            averaging=averaging,
        )
        for name in stage.settles
        if spec.tensor_groups(name) & widths.keys() and name not in spec.head
    }
    by_class = _average_rest(spec, stage, updates, wide, settled, averaging=averaging)
    settled = statistics.from_moments(spec, settled, like)
    if getattr(matcher, "output", "mean") == "posterior":
        for group, matching in matchings.items():
            names = [name for name in rows[group] if name in settled]
            if tuple(names) == rows[group]:
                set_signature(spec, group, names, settled, torch.as_tensor(matching.units))
    return StageOutcome(settled, tuple(assignments), widths, matchings, by_class)


def _is_weight(spec: PermutationSpec, name: str, tensor: Tensor) -> bool:
    return tensor.dtype.is_floating_point and name not in spec.statistics


def _expand_group(
    spec: PermutationSpec,
    group: str,
    tensors: Mapping[str, Tensor],
    assignments: Mapping[str, Tensor],
    widths: Mapping[str, int],
) -> dict[str, Tensor]:
    touched = {name: t for name, t in tensors.items() if group in spec.tensor_groups(name)}
    return {**tensors, **spec.expand(touched, {group: assignments[group]}, widths)}


def _average_units(
    spec: PermutationSpec,
    name: str,
    *,
    wide: Sequence[Mapping[str, Tensor]],
    assignments: Sequence[Mapping[str, Tensor]],
    widths: Mapping[str, int],
    weights: Sequence[float],
    averaging: Averaging,
) -> Tensor:
    """Average of one tensor over the clients that hold each entry; 0 where nobody does."""
    like = wide[0][name]
    # One tensor need not tell the widths of two groups that share an axis (heads x units).
    known = {**spec.sizes, **spec.widths({name: like}), **widths}
    masks = (holding_mask(spec, name, held, known) for held in assignments)
    held = [mask * weight for mask, weight in zip(masks, weights, strict=True)]
    holders = torch.zeros(like.shape, dtype=torch.float64)
    for mask in held:
        holders += mask
    if averaging.robust:
        mean = averaging.combine([tensors[name] for tensors in wide], held, sum(weights))
    else:
        total = torch.zeros(like.shape, dtype=torch.float64)
        for tensors, mask in zip(wide, held, strict=True):
            total += tensors[name].to(torch.float64) * mask
        mean = total / holders.clamp_min(torch.finfo(torch.float64).tiny)
    mean = torch.where(holders > 0, mean, torch.full_like(mean, spec.padding(name)))
    return _as_dtype(mean, like.dtype)


def holding_mask(
    spec: PermutationSpec,
    name: str,
    assignment: Mapping[str, Tensor],
    widths: Mapping[str, int],
) -> Tensor:
    """1 where a client holds the unit or the pair of units.

    Only groups in `assignment`, those matched in this stage, count: along groups matched earlier
    the client has trained every unit of the global width, its own or not.

    Parameters
    ----------
    spec : PermutationSpec
        The model's spec.
    name : str
        The tensor.
    assignment : mapping of str to Tensor
        The (n,) global unit of each of the client's units, by group.
    widths : mapping of str to int
        The global width of every group of the tensor.

    Returns
    -------
    Tensor
        Float64, of a shape that broadcasts to the tensor's.
    """
    axes = spec.axes[name]
    mask = torch.ones([1] * len(axes), dtype=torch.float64)
    for dim, axis in enumerate(axes):
        if axis.groups & assignment.keys():
            held = torch.zeros(axis.size(widths), dtype=torch.float64)
            held[axis.positions(assignment, widths)] = 1.0
            mask = mask * held.reshape([-1 if d == dim else 1 for d in range(len(axes))])
    return mask


def _average_rest(
    spec: PermutationSpec,
    stage: PlannedStage,
    updates: Sequence[ClientUpdate],
    wide: Sequence[Mapping[str, Tensor]],
    settled: dict[str, Tensor],
    *,
    averaging: Averaging,
) -> bool:
    """Average the head and what has no axis matched in this stage; whether by class counts.

    In one-shot matching the head has such an axis. Where a client lacks a unit its head has 0:
    what the unit adds to the outputs is averaged over all clients, as the outputs are.
    """
    by_class = False
    examples = torch.tensor([update.examples for update in updates], dtype=torch.float64)
    for name in stage.settles:
        if name in settled:
            continue
        tensors = [client[name] for client in wide]
        weights = examples.reshape([-1] + [1] * tensors[0].dim())
        counts = _class_weights(spec, name, updates) if name in spec.head else None
        if counts is not None and averaging.robust:
            counts = cap_counts(counts)
        if counts is not None:
            weights, by_class = counts, True
        if averaging.robust:
            mean = averaging.combine(tensors, list(weights))
        else:
            stacked = torch.stack([tensor.to(torch.float64) for tensor in tensors])
            mean = (stacked * (weights / weights.sum(0))).sum(0)
        settled[name] = _as_dtype(mean, tensors[0].dtype)
    return by_class


def _class_weights(
    spec: PermutationSpec, name: str, updates: Sequence[ClientUpdate]
) -> Tensor | None:
    """Class counts, (J, 1.., outputs, ..1); None unless every client has fitting ones."""
    shape = updates[0].tensors[name].shape
    if not shape:
        return None
    dim = spec.output_axis(name)
    counts = [update.class_counts for update in updates if update.class_counts is not None]
    if len(counts) < len(updates) or any(len(count) != shape[dim] for count in counts):
        return None
    stacked = torch.stack([count.to(torch.float64) for count in counts])  # (J, outputs)
    total = stacked.sum(0)
    # A class that nobody has seen says nothing about whom to trust: all clients alike.
    weights = torch.where(total > 0, stacked, torch.ones_like(stacked))
    return weights.reshape([-1, *(shape[d] if d == dim else 1 for d in range(len(shape)))])


def _as_dtype(mean: Tensor, dtype: torch.dtype) -> Tensor:
    return mean.to(dtype) if dtype.is_floating_point else mean.round().to(dtype)


def max_width(size: int, growable: bool, max_growth: float) -> int:
    """The most units that a group of the given initial size may have."""
    return max(size, math.floor(size * max_growth + 1e-9)) if growable else size
