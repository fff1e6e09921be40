"""Rounds of several stages, behind Flower's `configure_train` and `aggregate_train`."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from logging import WARNING

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.supercore import log

from fedma_flwr import protocol
from fedma_flwr.server.cohort import TRAIN_STREAM
from fedma_flwr.server.global_model import GlobalModel
from fedma_flwr.server.hello import HelloLike
from fedma_flwr.server.incompatible import (
    refuse_own_aggregation,
    refuse_own_messages,
    refuse_wrappers,
)
from fedma_flwr.server.narrow_models import NarrowModels
from fedma_flwr.server.overriding import Aggregated
from fedma_flwr.server.reply_metrics import aggregate
from fedma_flwr.server.round import CommunicationRound
from fedma_flwr.server.running_round import RunningRound
from fedma_flwr.server.train_contents import train_contents


class StagedCohort(NarrowModels):
    """A resumable cohort whose rounds have FedMA's stages.

    Flower asks for one exchange a round. `configure_train` gives the first stage's messages to
    whoever calls it; `aggregate_train` ends that stage and sends the others' messages itself.
    """

    head_fraction: float

    def _begin(self, initial_arrays: ArrayRecord, timeout: float) -> None:
        tensors = self._fit(initial_arrays)
        refuse_wrappers(self)
        super()._begin(initial_arrays, timeout)
        if self._done == 0:
            self._model = GlobalModel(tensors)
        # Random, so that what a client of an earlier run kept can never be taken for this run's.
        self._nonce = secrets.token_hex(4)
        self._tokens: dict[int, str] = {}
        self._running: RunningRound | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Sample the cohort, and return the first stage's messages.

        `aggregate_train` sends the later stages'. What an override changes here (config entries,
        further records, clients left out) holds for the messages of all stages.
        """
        self._running, self._arrays = None, arrays
        if self.fraction_train == 0.0 or server_round <= self._done:
            return []
        self._adopt(arrays)
        nodes = self._sample(grid, server_round, TRAIN_STREAM, self._hello_like(config))
        if not nodes:
            return []
        solved = self.settings.solver is not None
        guests = self._others(nodes, server_round, self.head_fraction) if solved else []
        current = CommunicationRound(
            settings=self.settings,
            model=self._model,
            number=server_round,
            members=[(node, self.client_key(node)) for node in nodes],
            guests=[(node, self.client_key(node)) for node in guests],
            ratios={node: self.client_width(node) for node in (*nodes, *guests)},
            config=config,
            nonce=self._nonce,
        )
        self._running = self._make_running(current, grid)
        return self._running.first_messages()

    def _make_running(self, current: CommunicationRound, grid: Grid) -> RunningRound:
        return RunningRound(
            current,
            grid,
            self.history,
            timeout=self._timeout,
            tokens=self._tokens,
            min_train_nodes=self.min_train_nodes,
            matchings=self._matchings,
            sender=self._overridden("configure_train"),
            receiver=self._overridden("aggregate_train"),
            replies_are_seen=self._has_own("aggregate_train") or self._has_own("start"),
        )

    def _hello_like(self, config: ConfigRecord) -> HelloLike:
        stages = len(self.settings.plan)
        return HelloLike(stages, config, self.configrecord_key, self.arrayrecord_key)

    def _sending(self, server_round: int, messages: list[Message]) -> list[Message]:
        if self._running is not None:
            self._running.sending(messages)
        elif messages and server_round > self._done:
            refuse_own_messages(self._overridden("configure_train"))
        return messages if self._running is not None else []

    def _receiving(self, server_round: int, replies: list[Message]) -> None:
        if self._running is not None:
            self._running.receiving(replies)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Finish the first stage, and run the others; the unchanged arrays if that fails."""
        if server_round <= self._done:
            return self._restored(server_round)
        running, self._running = self._running, None
        finished = running is not None and running.finish(list(replies))
        if running is not None:
            self._learn_keys(running.told_keys)
            for node, ratio in running.told_ratios.items():
                self._widths.told(node, ratio)
        if running is None or not finished:
            self._finish(server_round, None, self._model)
            return self._arrays, None
        self.history.conclude(server_round)
        contents = train_contents(running.told, self.settings)
        metrics = aggregate(contents, self.weighted_by_key, self.train_metrics_aggr_fn)
        current = running.current
        current.saved.save(current.settled.matchings)
        if current.is_undone():
            self.history.give_up(server_round, current.fall())
        elif remark := current.fall() or current.lag():
            log(WARNING, "Round %s: %s.", server_round, remark)
        self._finish(server_round, metrics, current.committed())
        self._given = protocol.to_arrays(self._model.handed_out)
        return self._given, metrics

    def _aggregated(self, server_round: int, outcome: Aggregated) -> Aggregated:
        if self._running is None:
            return outcome
        self._running = None
        if outcome[0] is not None:
            refuse_own_aggregation(self._overridden("aggregate_train"))
        who = self._overridden("aggregate_train")
        self.history.give_up(server_round, f"{who} did not hand it on")
        self._finish(server_round, outcome[1], self._model)
        return outcome
