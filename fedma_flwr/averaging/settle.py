"""The server's arithmetic of one stage: match the groups, average what settles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedma_flwr.averaging.averages import Averaging
from fedma_flwr.averaging.client_update import ClientUpdate
from fedma_flwr.averaging.head import HeadSolver, class_weights
from fedma_flwr.averaging.holders import holding_mask
from fedma_flwr.averaging.outcome import StageOutcome
from fedma_flwr.averaging.pooled_statistics import from_pooled, to_poolable
from fedma_flwr.averaging.robust import scale_down
from fedma_flwr.averaging.server_step import RoundStart, take_step
from fedma_flwr.averaging.similarity import similarity_of_matched
from fedma_flwr.matching import Matcher, Matching, check_matching
from fedma_flwr.matching.threads import threads_for, using_threads
from fedma_flwr.structure import (
    PermutationSpec,
    PlannedStage,
    set_signature,
    signature,
    signature_tensors,
)

PLAIN = Averaging()


@dataclass
class _Matched:
    """The clients' tensors while the groups of a stage are matched one after the other."""

    wide: list[dict[str, Tensor]]  # at the global widths of all groups matched so far
    assignments: tuple[dict[str, Tensor], ...]
    widths: dict[str, int] = field(default_factory=dict)
    matchings: dict[str, Matching] = field(default_factory=dict)
    signatures: dict[str, tuple[str, ...]] = field(default_factory=dict)  # tensors, by group
    similarity: dict[str, list[float]] = field(default_factory=dict)


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
    saved: Mapping[str, Matcher] | None = None,
    start: RoundStart | None = None,
    server_learning_rate: float = 1.0,
) -> StageOutcome:
    """Match the groups of a stage across clients and average the tensors that settle.

    Units are averaged over the clients that hold them; where two matched axes meet (recurrent
    weights, layers bundled in one stage), over the clients that hold the pair. The head is
    averaged row by row with weights ``n_jc / sum_j n_jc`` (Wang et al., 2020, section 2.2).
    Running variances are pooled: they include what the clients' means differ.

    Long because a stage is settled by one call, and each line is one step of it.

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
        Finds the assignments of one group.
    max_widths : mapping of str to int
        The most units that each group may have.
    weighted : bool (default: False)
        Weigh clients by their examples when matched units are averaged, instead of equally.
    averaging : Averaging (default: the mean)
        How the clients' values of an entry become one; the weights are the same for all kinds.
    seed : int (default: 0)
        Seed of the matcher's client orders.
    saved : mapping of str to Matcher, optional
        What takes the matcher's place in single groups: matchings of an earlier run.
    start : RoundStart, optional
        What the clients have started from, as far as the server knows it: without it there is no
        server step and no row of an absent class is kept.
    server_learning_rate : float (default: 1.0)
        How far to go from the start to the clients' mean; see `take_step`.

    Returns
    -------
    StageOutcome
        Settled tensors in the dtype of the uploads.
    """
    like = updates[0].tensors
    updates = [replace(u, tensors=to_poolable(spec, u.tensors)) for u in updates]
    weights = [update.examples if weighted else 1.0 for update in updates]
    found = _Matched(_usual_sizes(spec, updates, like, averaging), tuple({} for _ in updates))
    for number, group in enumerate(stage.groups):
        found.signatures[group] = signature_tensors(spec, group, matched | found.widths.keys())
        chosen = (saved or {}).get(group, matcher)
        units = [signature(spec, group, found.signatures[group], t).numpy() for t in found.wide]
        matching = chosen.match(
            units,
            weights=weights if weighted else None,
            max_width=max_widths[group],
            seed=seed + number,
        )
        check_matching(matching, [len(rows) for rows in units], max_widths[group])
        found.similarity[group] = similarity_of_matched(units, matching)
        _take(spec, group, matching, found)
    with using_threads(1):  # sums wait for the memory, and threads for one another
        settled = _average_units(spec, stage, found, weights, averaging)
        by_class = _average_rest(spec, stage, updates, found.wide, settled, averaging=averaging)
        # A head that is going to be solved is averaged too: local training goes on from it.
        unsettled = [n for n in spec.head if n in stage.uploads and n not in settled]
        local_head = {n: _average_over_all(n, updates, found.wide, averaging) for n in unsettled}
    settled = from_pooled(spec, settled, like)
    if matcher.output == "posterior":
        _set_posterior_means(spec, found, settled)
    if start is not None:
        start = start.after_matching(found.assignments, found.widths)
        settled = take_step(spec, settled, start, updates, server_learning_rate)
    return StageOutcome(
        settled,
        found.assignments,
        found.widths,
        found.matchings,
        head_by_class=by_class,
        local_head=local_head,
        similarity=found.similarity,
    )


def solve_stage(
    spec: PermutationSpec,
    updates: Sequence[ClientUpdate],
    widths: Mapping[str, int],
    solver: HeadSolver,
    dtype: torch.dtype,
    *,
    reference: Mapping[str, Tensor] | None = None,
) -> StageOutcome:
    """Solve the head from the moments that clients sent in the last stage.

    Parameters
    ----------
    spec : PermutationSpec
        The model's spec.
    updates : sequence of ClientUpdate
        With moments; at least one.
    widths : mapping of str to int
        The global width of every group.
    solver : HeadSolver
        What to solve, and how.
    dtype : torch.dtype
        Of the head.
    reference : mapping of str to Tensor, optional
        The head that clients were sent, and whose expectations their moments include.
    """
    inputs = max((update.moments.inputs for update in updates if update.moments), default=0)
    with using_threads(threads_for(inputs**3)):
        solved = solver.solve(spec, updates, widths, reference or {})
    head, local_head = (
        {name: tensor.to(dtype) for name, tensor in tensors.items()}
        for tensors in (solved.tensors, solved.local_head)
    )
    return StageOutcome(
        head,
        tuple({} for _ in updates),
        head_solved=True,
        local_head=local_head,
        share_factor=solved.share_factor,
        unexplained=solved.unexplained,
    )


def _usual_sizes(
    spec: PermutationSpec,
    updates: Sequence[ClientUpdate],
    like: Mapping[str, Tensor],
    averaging: Averaging,
) -> list[dict[str, Tensor]]:
    """The clients' tensors; for a robust average without units that are larger than usual."""
    tensors = [dict(update.tensors) for update in updates]
    if not averaging.robust:
        return tensors
    weights = [n for n, t in like.items() if t.is_floating_point() and n not in spec.statistics]
    return scale_down(tensors, weights)


def _take(spec: PermutationSpec, group: str, matching: Matching, found: _Matched) -> None:
    """Put every client's units of a group where the matching says."""
    found.widths[group], found.matchings[group] = len(matching.units), matching
    for client, assignment in enumerate(matching.assignments):
        units = torch.as_tensor(assignment, dtype=torch.int64)
        found.assignments[client][group] = units
        tensors = found.wide[client]
        if len(units) == found.widths[group] and torch.equal(units, torch.arange(len(units))):
            continue  # they are there already
        touched = {name: t for name, t in tensors.items() if group in spec.tensor_groups(name)}
        tensors.update(spec.expand(touched, {group: units}, found.widths))


def _average_units(
    spec: PermutationSpec,
    stage: PlannedStage,
    found: _Matched,
    weights: Sequence[float],
    averaging: Averaging,
) -> dict[str, Tensor]:
    """Averages of what has an axis matched in this stage, over the clients that hold each entry."""
    settled = {}
    for name in stage.settles:
        if name in spec.head or not spec.tensor_groups(name) & found.widths.keys():
            continue
        like = found.wide[0][name]
        # One tensor need not tell the widths of two groups that share an axis (heads x units).
        widths = {**spec.sizes, **spec.widths({name: like}), **found.widths}
        masks = (
            holding_mask(spec, name, units, widths) * weight
            for units, weight in zip(found.assignments, weights, strict=True)
        )
        values = [tensors[name] for tensors in found.wide]
        rule = averaging.of_statistics if name in spec.statistics else averaging
        mean, held = rule.of_holders(values, masks, sum(weights))
        # Where nobody holds a pair of units, there is nothing to average.
        mean = torch.where(held, mean, spec.padding(name))
        settled[name] = _as_dtype(mean, like.dtype)
    return settled


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
    for name in stage.settles:
        if name in settled:
            continue
        counts = None
        if name in spec.head:
            counts = class_weights(spec, name, updates, capped=averaging.robust)
        rule = averaging.of_statistics if name in spec.statistics else averaging
        settled[name] = _average_over_all(name, updates, wide, rule, counts)
        by_class = by_class or counts is not None
    return by_class


def _average_over_all(
    name: str,
    updates: Sequence[ClientUpdate],
    wide: Sequence[Mapping[str, Tensor]],
    averaging: Averaging,
    weights: Tensor | None = None,
) -> Tensor:
    """The average of a tensor over all clients; without weights by their examples, as in FedAvg."""
    if weights is None:
        weights = torch.tensor([update.examples for update in updates], dtype=torch.float64)
    values = [tensors[name] for tensors in wide]
    return _as_dtype(averaging.combine(values, list(weights)), values[0].dtype)


def _set_posterior_means(
    spec: PermutationSpec, found: _Matched, settled: dict[str, Tensor]
) -> None:
    """Put the matcher's posterior means where all tensors of a signature settle."""
    for group, matching in found.matchings.items():
        names = found.signatures[group]
        if all(name in settled for name in names):
            set_signature(spec, group, names, settled, torch.as_tensor(matching.units))


def _as_dtype(mean: Tensor, dtype: torch.dtype) -> Tensor:
    return mean.to(dtype) if dtype.is_floating_point else mean.round().to(dtype)
