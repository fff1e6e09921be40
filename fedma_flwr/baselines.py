"""FedAvg and FedProx on Flower's own classes, with FedMA's cohorts and records."""

from __future__ import annotations

import time
from collections.abc import Iterable
from logging import INFO
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.exception import AggregationError
from flwr.serverapp.strategy import Result
from flwr.supercore import log

from fedma_flwr import protocol
from fedma_flwr.server.arguments import check_arguments
from fedma_flwr.server.cohort import TRAIN_STREAM
from fedma_flwr.server.global_model import GlobalModel
from fedma_flwr.server.history import ExchangeRecord, all_failed, mean_epochs
from fedma_flwr.server.messages import error_reason, sent_to
from fedma_flwr.server.resuming import ResumableCohort
from fedma_flwr.structure.stages import LOCAL


class FedAvg(ResumableCohort):
    """Flower's FedAvg (McMahan et al., 2017), sampled by seed, with one record an exchange.

    Parameters
    ----------
    **options : Any
        Those of `ResumableCohort`, `SeededCohort` and of Flower's FedAvg.
    """

    def _begin(self, timeout: float) -> None:
        super()._begin(timeout)
        self._sent: list[Message] = []

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        *args: Any,
        **kwargs: Any,
    ) -> Result:
        """Run the strategy; see Flower's ``Strategy.start``."""
        check_arguments({"num_rounds": num_rounds})
        self._begin(timeout)
        self._model = GlobalModel(protocol.to_tensors(initial_arrays))
        return super().start(grid, initial_arrays, num_rounds, timeout, *args, **kwargs)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Send the global model to the round's cohort."""
        if self.fraction_train == 0.0 or server_round <= self._done:
            return []
        nodes = self._sample(grid, server_round, TRAIN_STREAM)
        config[protocol.SERVER_ROUND_KEY] = server_round
        record = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config})
        self._sent = self._construct_messages(record, nodes, MessageType.TRAIN)
        self._sent_at = time.monotonic()
        return self._sent

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average as Flower does, in the order of the client keys."""
        if server_round <= self._done:
            return self._restored(server_round)
        replies, model = list(replies), self._model
        arrays, metrics = None, None
        if replies or self._sent:
            self._record_exchange(server_round, replies)
            sent = self._sorted(replies, self._sent)
            arrays, metrics = super().aggregate_train(server_round, sent)
        if arrays is not None:
            model = GlobalModel(protocol.to_tensors(arrays))
        self._finish(server_round, metrics, model)
        return arrays, metrics

    def _record_exchange(self, server_round: int, replies: list[Message]) -> None:
        record = ExchangeRecord(server_round, 0, 1, LOCAL, cohort=len(self._sent))
        nodes = sent_to(self._sent)
        answered = {nodes[r.metadata.reply_to_message_id]: r for r in replies if not r.has_error()}
        record.dropped = {
            self.client_key(nodes[reply.metadata.reply_to_message_id]): error_reason(reply)
            for reply in replies
            if reply.has_error()
        }
        record.answered = len(answered)
        record.bytes_down = protocol.count_bytes(message.content for message in self._sent)
        record.bytes_up = protocol.count_bytes(reply.content for reply in answered.values())
        record.epochs = mean_epochs(
            metrics
            for reply in answered.values()
            for metrics in reply.content.metric_records.values()
        )
        record.seconds_waiting = time.monotonic() - self._sent_at
        self.history.add(record)
        if not answered:
            raise AggregationError(all_failed(server_round, "train", record.dropped))


class FedProx(FedAvg):
    """FedAvg whose clients add ``(mu / 2) * ||w - w_global||^2`` to their loss.

    The value of mu reaches the train function as config key ``proximal-mu``; `proximal_term`
    computes the term (Li et al., 2020).

    Parameters
    ----------
    proximal_mu : float (default: 0.001)
        Weight of the term, the paper's mu.
    **options : Any
        Those of `FedAvg`.
    """

    def __init__(self, *, proximal_mu: float = 0.001, **options: Any) -> None:
        check_arguments({"proximal_mu": proximal_mu})
        super().__init__(**options)
        self.proximal_mu = proximal_mu

    def summary(self) -> None:
        """Log the configuration."""
        log(INFO, "\t├──> FedProx settings:")
        log(INFO, "\t│\t└── Proximal mu: %s", self.proximal_mu)
        super().summary()

    def _fingerprint(self) -> dict[str, str]:
        return {**super()._fingerprint(), "proximal_mu": str(self.proximal_mu)}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Send the global model and mu to the round's cohort."""
        config[protocol.PROXIMAL_MU_KEY] = self.proximal_mu
        return super().configure_train(server_round, arrays, config, grid)
