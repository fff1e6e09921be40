"""The server's arithmetic of one stage: match the groups, average what settles."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedma_flwr.averaging.all_uploads import AllUploads, as_dtype, of_clients
from fedma_flwr.averaging.averages import Averaging
from fedma_flwr.averaging.client_update import ClientUpdate
from fedma_flwr.averaging.head import HeadSolver
from fedma_flwr.averaging.holders import holding_mask
from fedma_flwr.averaging.outcome import StageOutcome
from fedma_flwr.averaging.pooled_statistics import from_pooled, to_poolable
from fedma_flwr.averaging.robust import scale_down
from fedma_flwr.averaging.server_step import RoundStart, take_step
from fedma_flwr.averaging.similarity import similarity_of_matched
from fedma_flwr.averaging.wide_tensors import WideTensors, of_each
from fedma_flwr.matching import Matcher, Matching, check_matching
from fedma_flwr.matching.arrays import Floats, UnitsOnDemand, widths_of
from fedma_flwr.matching.threads import threads_for, using_threads
from fedma_flwr.structure import (
    PermutationSpec,
    PlannedStage,
    set_signature,
    signature,
    signature_tensors,
)
from fedma_flwr.structure.signatures import is_nested

PLAIN = Averaging()


@dataclass
class _Matched:
    """The clients' tensors while the groups of a stage are matched one after the other."""

    updates: Sequence[ClientUpdate]
    # At the global widths of all groups matched so far; behind the clients' the last model's.
    wide: list[WideTensors]
    assignments: tuple[dict[str, Tensor], ...]
    widths: dict[str, int] = field(default_factory=dict)
    matchings: dict[str, Matching] = field(default_factory=dict)
    # Tensors, by group, that its rows can be written back into.
    signatures: dict[str, tuple[str, ...]] = field(default_factory=dict)
    similarity: dict[str, list[float]] = field(default_factory=dict)
    before: Mapping[str, int] = field(default_factory=dict)  # global widths of earlier stages

    @property
    def known(self) -> dict[str, int]:
        """Global width of every group matched so far, in this stage or before."""
        return {**self.before, **self.widths}

    def otherwise(self, name: str, padding: float) -> Tensor | float:
        """What stands where none of the clients holds an entry: the last model's, if it is here."""
        return self.wide[-1][name] if len(self.wide) > len(self.updates) else padding


def settle_stage(
    spec: PermutationSpec,
    stage: PlannedStage,
    updates: Sequence[ClientUpdate],
    *,
    matched: Collection[str],
    matcher: Matcher,
    max_widths: Mapping[str, int],
    weighted: bool = False,
    averaging: Averaging = PLAIN,
    seed: int = 0,
    saved: Mapping[str, Matcher] | None = None,
    start: RoundStart | None = None,
    server_learning_rate: float = 1.0,
    last: Mapping[str, Tensor] | None = None,
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
    matched : collection of str, or mapping of str to int
        Groups matched in earlier stages of the round; with their global widths, which tensors of
        two groups on one axis do not tell.
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
    last : mapping of str to Tensor, optional
        The last global model, in the units of the groups matched so far. With narrow clients it
        takes part in the matching, so that no unit is lost; averages have its value where no client
        holds an entry.

    Returns
    -------
    StageOutcome
        Settled tensors in the dtype of the uploads.
    """
    like = updates[0].tensors
    updates = [replace(u, tensors=to_poolable(spec, u.tensors)) for u in updates]
    weights = [update.examples if weighted else 1.0 for update in updates]
    uploads = _usual_sizes(spec, updates, like, averaging)
    if last is not None:
        uploads.append(to_poolable(spec, last))
    wide = [WideTensors(spec, tensors) for tensors in uploads]
    found = _Matched(updates, wide, tuple({} for _ in uploads))
    found.before = matched if isinstance(matched, Mapping) else {}
    earlier = frozenset(matched)
    for number, group in enumerate(stage.groups):
        chosen = (saved or {}).get(group, matcher)
        units = _units_of(spec, group, earlier, found, chosen)
        matching = chosen.match(
            units,
            weights=[*weights, 1.0][: len(units)] if weighted else None,
            max_width=max_widths[group],
            seed=seed + number,
        )
        check_matching(matching, widths_of(units), max_widths[group])
        found.similarity[group] = similarity_of_matched(units, matching)
        _take(group, matching, found)
    with using_threads(1):  # sums wait for the memory, and threads for one another
        settled = _average_units(spec, stage, found, weights, averaging)
        sent = AllUploads(spec, updates, found.wide, found.assignments, found.known)
        by_class = sent.average_rest(stage, settled, averaging=averaging)
        # A head that is going to be solved is averaged too: local training goes on from it.
        unsettled = [n for n in spec.head if n in stage.uploads and n not in settled]
        local_head = {n: sent.average(n, averaging) for n in unsettled}
    settled = from_pooled(spec, settled, like)
    if matcher.output == "posterior" and last is None:  # it is no client
        _set_posterior_means(spec, found, settled)
    own, matchings = found.assignments[: len(updates)], found.matchings
    if last is not None:
        matchings = {g: of_clients(matching, len(updates)) for g, matching in matchings.items()}
    if start is not None:
        start = start.after_matching(own, found.widths)
        settled = take_step(spec, settled, start, updates, server_learning_rate)
    return StageOutcome(
        settled,
        own,
        found.widths,
        matchings,
        head_by_class=by_class,
        local_head=local_head,
        similarity=found.similarity,
        last_units=found.assignments[-1] if last is not None else {},
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


def _units_of(
    spec: PermutationSpec, group: str, earlier: frozenset[str], found: _Matched, matcher: Matcher
) -> Sequence[Floats]:
    """The rows that everyone's units of a group are matched by.

    One by one, where the matcher need not hold all of them.
    """
    known, wide, matched = found.known, found.wide, earlier | found.widths.keys()
    others = spec.groups.keys() - matched - {group}
    names, nested = signature_tensors(spec, group, matched), is_nested(spec, group, others)
    if not nested:
        found.signatures[group] = names

    def units(client: int) -> Floats:
        rows: Floats = signature(spec, group, names, wide[client], known, unmatched=others).numpy()
        return rows

    if nested or len(wide) <= getattr(matcher, "anchors", math.inf):
        return [units(client) for client in range(len(wide))]
    return UnitsOnDemand([tensors.width(group, names, known) for tensors in wide], units)


def _take(group: str, matching: Matching, found: _Matched) -> None:
    """Put every client's units of a group where the matching says."""
    found.widths[group], found.matchings[group] = len(matching.units), matching
    for client, assignment in enumerate(matching.assignments):
        units = torch.as_tensor(assignment, dtype=torch.int64)
        found.assignments[client][group] = units
        found.wide[client].place(group, units, found.widths)


def _average_units(
    spec: PermutationSpec,
    stage: PlannedStage,
    found: _Matched,
    weights: Sequence[float],
    averaging: Averaging,
) -> dict[str, Tensor]:
    """Averages of what has an axis matched in this stage, over the clients that hold each entry."""
    settled, clients = {}, found.updates
    for name in stage.settles:
        if name in spec.head or not spec.tensor_groups(name) & found.widths.keys():
            continue
        like = found.wide[0][name]
        # One tensor need not tell the widths of two groups that share an axis (heads x units).
        widths = {**spec.sizes, **spec.widths({name: like}, found.known), **found.known}
        masks = (
            holding_mask(spec, name, {**update.held, **units}, widths) * weight
            for update, units, weight in zip(clients, found.assignments, weights, strict=False)
        )
        values = of_each(found.wide[: len(clients)], name)
        rule = averaging.of_statistics if name in spec.statistics else averaging
        mean, held = rule.of_holders(values, masks, sum(weights))
        # Where nobody holds a pair of units, there is nothing to average.
        mean = torch.where(held, mean, found.otherwise(name, spec.padding(name)))
        settled[name] = as_dtype(mean, like.dtype)
    return settled


def _set_posterior_means(
    spec: PermutationSpec, found: _Matched, settled: dict[str, Tensor]
) -> None:
    """Put the matcher's posterior means where all tensors of a signature settle."""
    for group, names in found.signatures.items():
        matching = found.matchings[group]
        if all(name in settled for name in names):
            rows = torch.as_tensor(matching.units)
            set_signature(spec, group, names, settled, rows, known=found.known)
