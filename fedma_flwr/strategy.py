"""Federated Learning with Matched Averaging (FedMA) strategy.

[Wang et al., 2020]

Paper: openreview.net/forum?id=BkluqlSFDS (arXiv 2002.06440)
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from logging import INFO, WARNING
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.exception import AggregationError
from flwr.serverapp.strategy import Result
from flwr.supercore import log
from torch import Tensor, nn

from fedma_flwr import protocol
from fedma_flwr.averaging import StageOutcome
from fedma_flwr.baselines import all_failed, check_rounds
from fedma_flwr.cohort import TRAIN_STREAM, SeededCohort, sent_to
from fedma_flwr.matching import BBPMAP, Matcher
from fedma_flwr.records import ExchangeRecord, mean_epochs
from fedma_flwr.replies import ReplyError, StageReply, read_reply
from fedma_flwr.round import (
    COMMON,
    OWN,
    CommunicationRound,
    GlobalModel,
    Member,
    RoundSettings,
    identity_share,
)
from fedma_flwr.structure import (
    GroupsPerStage,
    PermutationSpec,
    SpecError,
    StagePlan,
    sequential_spec,
)


class FedMA(SeededCohort):
    """Federated Matched Averaging.

    Layer by layer, the server matches the hidden units of one layer across clients, averages the
    matched ones, may let the layer grow, and sends it back; clients freeze it and retrain the
    layers above; the head is averaged by class counts. All stages of a communication round run
    inside one Flower round. Clients need ``ClientApp(mods=[fedma_mod])`` and `load_model`.

    Parameters
    ----------
    model : nn.Module, optional
        The model; its spec is derived from it (`spec` and `model` exclude one another).
    spec : PermutationSpec, optional
        The model's spec, if it was made by hand.
    matcher : Matcher, optional (default: BBPMAP(gamma=1.0))
        Finds the assignments of one group.
    groups_per_stage : int or "all" (default: 1)
        Groups matched in one stage. ``"all"``: one stage for all of them, then the head stage.
    initialisation : {"common", "own"} (default: "common")
        What clients start from in the first round: the initial arrays, or whatever their train
        function's model is (its own random weights, or a saved local model).
    max_growth : float (default: 2.0)
        A group may have at most this times its initial number of units. 1: no growth.
    weighted_units : bool (default: False)
        Weigh clients by `weighted_by_key` when matched units are averaged, instead of equally.
    retrain_config, head_config : mapping, optional
        Entries that override the train config in the retrain stages and in the head stage, for
        example ``{"local-epochs": 5}``.
    seed : int (default: 0)
        Seeds the sampling of clients and the matcher's client orders.
    node_timeout, stage_timeout, on_exchange
        See `SeededCohort`.
    **fedavg : Any
        FedAvg's keyword arguments: fraction_train, fraction_evaluate, min_train_nodes,
        min_evaluate_nodes, min_available_nodes, weighted_by_key, arrayrecord_key,
        configrecord_key, train_metrics_aggr_fn, evaluate_metrics_aggr_fn. A round goes on while
        `min_train_nodes` clients remain. Metrics are those of the head stage.

    Raises
    ------
    ValueError
        If an argument is out of range; the message names it.
    SpecError
        If the spec does not fit the model.
    """

    needs_mod = True

    def __init__(
        self,
        *,
        model: nn.Module | None = None,
        spec: PermutationSpec | None = None,
        matcher: Matcher | None = None,
        groups_per_stage: GroupsPerStage = 1,
        initialisation: str = COMMON,
        max_growth: float = 2.0,
        weighted_units: bool = False,
        retrain_config: Mapping[str, Any] | None = None,
        head_config: Mapping[str, Any] | None = None,
        **fedavg: Any,
    ) -> None:
        super().__init__(**fedavg)
        if initialisation not in (COMMON, OWN):
            raise ValueError(
                f"initialisation was {initialisation!r}; it must be {COMMON!r} or {OWN!r}."
            )
        if not 1.0 <= max_growth < float("inf"):
            raise ValueError(f"max_growth was {max_growth}; it must be 1 or more.")
        spec = _spec_of(model, spec)
        self.settings = RoundSettings(
            spec=spec,
            plan=StagePlan.build(spec, groups_per_stage),
            matcher=matcher if matcher is not None else BBPMAP(gamma=1.0),
            initialisation=initialisation,
            max_growth=max_growth,
            weighted_units=weighted_units,
            weighted_by_key=self.weighted_by_key,
            arrayrecord_key=self.arrayrecord_key,
            configrecord_key=self.configrecord_key,
            seed=self.seed,
            config_overrides={
                protocol.RETRAIN: dict(retrain_config or {}),
                protocol.HEAD: dict(head_config or {}),
            },
        )

    def summary(self) -> None:
        """Log the configuration as a tree."""
        settings = self.settings
        groups = ", ".join(f"{name} ({g.size})" for name, g in settings.spec.groups.items())
        log(INFO, "\t├──> FedMA settings:")
        log(INFO, "\t│\t├── Groups: %s", groups)
        log(INFO, "\t│\t├── Stages of a round: %s", len(settings.plan))
        log(INFO, "\t│\t├── Matcher: %s", settings.matcher)
        log(INFO, "\t│\t├── Initialisation: %s", settings.initialisation)
        log(INFO, "\t│\t└── Growth: at most %s times", settings.max_growth)
        super().summary()

    # ------------------------------------------------------------------ life cycle

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        *args: Any,
        **kwargs: Any,
    ) -> Result:
        """Run the strategy from the beginning; see Flower's ``Strategy.start``.

        Raises
        ------
        SpecError
            If `initial_arrays` are not those of the spec.
        AggregationError
            If every client fails in a stage, or if no client has `fedma_mod`.
        """
        check_rounds(num_rounds)
        tensors = protocol.to_tensors(initial_arrays)
        self.settings.spec.check(tensors, widths=self.settings.spec.sizes)
        self._begin(timeout)
        self._model = GlobalModel(tensors)
        self._initial_parameters = _parameters(tensors)
        return super().start(grid, initial_arrays, num_rounds, timeout, *args, **kwargs)

    def _begin(self, timeout: float) -> None:
        super()._begin(timeout)
        # Random, so that what a client of an earlier run kept can never be taken for this run's.
        self._nonce = secrets.token_hex(4)
        self._tokens: dict[int, str] = {}
        self._round: CommunicationRound | None = None
        self._sent: list[Message] = []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Run all stages but the last, and return the last one's messages."""
        self._round, self._sent, self._arrays = None, [], arrays
        if self.fraction_train == 0.0:
            return []
        self._grid = grid
        members = [self._member(node) for node in self._sample(grid, server_round, TRAIN_STREAM)]
        if not members:
            return []
        self._round = CommunicationRound(
            settings=self.settings,
            model=self._model,
            number=server_round,
            members=members,
            config=config,
            nonce=self._nonce,
        )
        last = len(self.settings.plan) - 1
        for stage in range(last):
            self._send(self._round, stage)
            replies = list(grid.send_and_receive(self._sent, timeout=self._timeout))
            if self._conclude(self._round, stage, replies) is None:
                return []
        return self._send(self._round, last)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Finish the last stage; the unchanged arrays if the round was given up."""
        current = self._round
        if current is None:
            return self._arrays, None
        received = self._conclude(current, len(self.settings.plan) - 1, list(replies))
        if received is None:
            return self._arrays, None
        self._model = current.committed()
        self._round = None
        if current.identity and current.widths:
            log(
                INFO,
                "Round %s: every assignment was the identity, so this round was layer-wise FedAvg "
                "(what a common initialisation usually gives).",
                server_round,
            )
        contents = _consistent([reply.content for reply in received.values()])
        metrics = self.train_metrics_aggr_fn(contents, self.weighted_by_key)
        return protocol.to_arrays(self._model.tensors), metrics

    def _member(self, node: int) -> Member:
        key, groups = self.client_key(node), self.settings.spec.groups
        known = self.settings.initialisation == COMMON or bool(self._model.token)
        widths = {name: group.size for name, group in groups.items()} if known else {}
        own = self._model.assignments.get(key, {})
        widths.update({group: len(units) for group, units in own.items()})
        return Member(node, key, self._tokens.get(node, ""), widths)

    # ------------------------------------------------------------------ one stage

    def _send(
        self, current: CommunicationRound, stage: int, lost: Sequence[int] | None = None
    ) -> list[Message]:
        """Make the messages of a stage: to all members, or again, in full, to those who lost."""
        self._sent = [
            Message(
                content=current.content(current.members[node], stage, resend=lost is not None),
                dst_node_id=node,
                message_type=MessageType.TRAIN,
                ttl=self._timeout,
                group_id=f"{current.number}.{stage}",
            )
            for node in (current.members if lost is None else lost)
        ]
        if lost is None:
            self._record = self._new_record(current, stage)
            self._sent_at = time.monotonic()
        self._record.bytes_down += protocol.count_bytes(m.content for m in self._sent)
        return self._sent

    def _new_record(self, current: CommunicationRound, stage: int) -> ExchangeRecord:
        planned = self.settings.plan[stage]
        return ExchangeRecord(
            round=current.number,
            stage=stage,
            stages=len(self.settings.plan),
            name=planned.name,
            groups=planned.groups,
            cohort=len(current.members),
        )

    def _conclude(
        self, current: CommunicationRound, stage: int, replies: list[Message]
    ) -> dict[int, StageReply] | None:
        """Read the replies of a stage, and match and average them.

        Returns
        -------
        dict of int to StageReply, or None
            By node, in the order of the client keys; None if too few clients remain.
        """
        received = self._receive(current, stage, replies)
        record = self._record
        record.seconds_waiting = time.monotonic() - self._sent_at
        record.answered = len(received)
        record.epochs = mean_epochs(
            {node: reply.content[protocol.METRICS_KEY] for node, reply in received.items()}
        )
        if len(received) < max(self.min_train_nodes, 1):
            self._give_up(current, stage, len(received))
            return None
        started = time.monotonic()
        updates = {node: reply.update for node, reply in received.items() if reply.update}
        outcome = current.settle(stage, updates)
        record.seconds_matching = time.monotonic() - started
        self._describe(current, stage, outcome)
        self.history.add(record)
        return received

    def _give_up(self, current: CommunicationRound, stage: int, answered: int) -> None:
        self._round = None
        self.history.add(self._record)
        name = f"{self.settings.plan[stage].name} (stage {stage})"
        if answered == 0:
            raise AggregationError(all_failed(current.number, name, self._record.dropped))
        log(
            WARNING,
            "Round %s is given up in the %s stage: %s clients remain, min_train_nodes is %s. "
            "The global model stays what it was.",
            current.number,
            name,
            answered,
            self.min_train_nodes,
        )

    def _receive(
        self, current: CommunicationRound, stage: int, replies: list[Message]
    ) -> dict[int, StageReply]:
        received = self._read(current, stage, replies)
        lost = [node for node, reply in received.items() if reply.update is None]
        if lost:
            keys = tuple(current.members[node].key for node in lost)
            log(INFO, "\tClients %s have lost their state; they are sent everything.", keys)
            self._record.resent = keys
            again = self._send(current, stage, lost)
            answers = list(self._grid.send_and_receive(again, timeout=self._timeout))
            received = {node: r for node, r in received.items() if r.update is not None}
            for node, reply in self._read(current, stage, answers).items():
                if reply.update is None:
                    self._drop(current, node, "the client does not keep its state")
                else:
                    received[node] = reply
        return {node: received[node] for node in current.members if node in received}

    def _read(
        self, current: CommunicationRound, stage: int, replies: list[Message]
    ) -> dict[int, StageReply]:
        """Valid replies to what was sent last, by node; others are dropped and named."""
        waiting = sent_to(self._sent)
        received = {}
        for reply in replies:
            node = waiting.pop(reply.metadata.reply_to_message_id, None)
            if node is None:
                continue
            if not reply.has_error():
                self._record.bytes_up += protocol.count_bytes([reply.content])
            member = current.members[node]
            try:
                received[node] = read_reply(reply, current.expected(member, stage))
            except ReplyError as error:
                self._drop(current, node, str(error))
                continue
            if received[node].update is not None:
                member.token = self._tokens[node] = current.token(stage)
                member.widths = {**received[node].widths, **member.widths}
        for node in waiting.values():
            self._drop(current, node, f"no reply within {self._timeout:g} s")
        return received

    def _drop(self, current: CommunicationRound, node: int, reason: str) -> None:
        key = current.members[node].key
        self._record.dropped[key] = reason
        log(
            WARNING,
            "\tRound %s, stage %s: client %s (node %s) is dropped for the rest of the round: %s",
            self._record.round,
            self._record.stage,
            key,
            node,
            reason,
        )

    def _describe(self, current: CommunicationRound, stage: int, outcome: StageOutcome) -> None:
        record = self._record
        record.widths = {name: int(width) for name, width in current.widths.items()}
        grown = current.settled if stage == len(self.settings.plan) - 1 else self._model.tensors
        record.growth = _parameters(grown) / self._initial_parameters
        for group, matching in outcome.matchings.items():
            share = identity_share(matching.assignments)
            record.identity = share if record.identity is None else min(record.identity, share)
            held = torch.bincount(torch.as_tensor(matching.popularity), minlength=record.cohort + 1)
            record.popularity[group] = held[1:].tolist()
            record.objective[group] = float(matching.objective)
            log(
                INFO,
                "\tRound %s, stage %s: %s matched, %s -> %s units, identity for %.0f %% of clients",
                record.round,
                record.stage,
                group,
                self.settings.spec.groups[group].size,
                outcome.widths[group],
                100 * share,
            )
        if stage == len(self.settings.plan) - 1:
            how = "class counts" if outcome.head_by_class else repr(self.weighted_by_key)
            log(INFO, "\tRound %s: the head is averaged by %s", record.round, how)


def _spec_of(model: nn.Module | None, spec: PermutationSpec | None) -> PermutationSpec:
    if (model is None) == (spec is None):
        raise ValueError("FedMA needs either `model` or `spec`, and not both.")
    if spec is None:
        assert model is not None  # noqa: S101
        spec = sequential_spec(model)
    if not spec.groups:
        raise SpecError("The spec has no groups, so there is nothing to match: use FedAvg.")
    return spec


def _parameters(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


def _consistent(contents: list[RecordDict]) -> list[RecordDict]:
    """Contents whose metrics have the names and types that most have, without class counts.

    A client that sends other metrics than the rest must not break their aggregation.
    """
    cleaned = []
    for content in contents:
        metrics = dict(content.metric_records[protocol.METRICS_KEY])
        metrics.pop(protocol.CLASS_COUNTS_KEY, None)
        cleaned.append(RecordDict({protocol.METRICS_KEY: MetricRecord(metrics)}))
    kinds = [
        tuple(sorted((key, len(v) if isinstance(v, list) else -1) for key, v in metrics.items()))
        for content in cleaned
        for metrics in content.metric_records.values()
    ]
    usual = max(set(kinds), key=lambda kind: (kinds.count(kind), kind))
    return [content for content, kind in zip(cleaned, kinds, strict=True) if kind == usual]
