"""FedAvg and FedProx on Flower's own classes, with FedMA's cohorts and records."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from logging import INFO
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.exception import AggregationError
from flwr.serverapp.strategy import Result
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from flwr.supercore import log
from torch import nn

from fedma_flwr import protocol
from fedma_flwr.server.arguments import check_arguments
from fedma_flwr.server.cohort import TRAIN_STREAM
from fedma_flwr.server.first_units import FirstUnits
from fedma_flwr.server.global_model import GlobalModel
from fedma_flwr.server.history import ExchangeRecord, all_failed, mean_epochs
from fedma_flwr.server.messages import count_replies, node_of, sent_to
from fedma_flwr.server.overriding import Aggregated
from fedma_flwr.server.recorded_cohort import RecordedCohort
from fedma_flwr.server.reply_metrics import aggregate, read_metrics, read_weight
from fedma_flwr.server.spec_choice import make_spec
from fedma_flwr.server.whole_models import usable_models
from fedma_flwr.structure import PermutationSpec
from fedma_flwr.structure.model_copies import Inputs
from fedma_flwr.structure.stages import LOCAL


class FedAvg(RecordedCohort):
    """Flower's FedAvg (McMahan et al., 2017), sampled by seed, with one record an exchange.

    With narrow clients (`client_widths`, or ``client-width`` in a node's config) it is HeteroFL
    (Diao et al., 2021), without its scaler and static batch norms: they are sent the first units
    of every group, and each entry is averaged over those who hold it.

    Parameters
    ----------
    model, example_inputs : nn.Module, and Tensor, tuple or dict, optional
        As for `FedMA`: narrow clients need a spec.
    spec : PermutationSpec, optional
        The same.
    **options : Any
        Those of `RecordedCohort`, `ResumableCohort`, `SeededCohort` and of Flower's FedAvg.
    """

    def __init__(
        self,
        *,
        model: nn.Module | None = None,
        example_inputs: Inputs | None = None,
        spec: PermutationSpec | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        known = model is not None or spec is not None
        self._units = FirstUnits(make_spec(model, example_inputs, spec) if known else None)
        if self.client_widths and not known:
            raise ValueError(
                f"client_widths was {self.client_widths!r}, but nothing says where the model's "
                "units are: give `model` and `example_inputs`, or `spec`, as well."
            )

    def _begin(self, initial_arrays: ArrayRecord, timeout: float) -> None:
        super()._begin(initial_arrays, timeout)
        self._initial = initial_arrays
        self._sent: list[Message] = []
        self._ratios: dict[int, float] = {}  # of the nodes that were sampled last
        self._before = initial_arrays  # what the round has begun with
        self._finished = 0  # the last round that has come to its end
        self._averaged = False  # whether a round has

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        *args: Any,
        **kwargs: Any,
    ) -> Result:
        """Run the strategy; see Flower's ``Strategy.start``.

        Raises
        ------
        AggregationError
            If no client's reply can be used before the first complete round.
        """
        check_arguments({"num_rounds": num_rounds})
        return super().start(grid, initial_arrays, num_rounds, timeout, *args, **kwargs)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Send the global model to the round's cohort."""
        if self.fraction_train == 0.0 or server_round <= self._done:
            return []
        nodes = self._sample(grid, server_round, TRAIN_STREAM)
        self._ratios = {node: self.client_width(node) for node in nodes}
        nodes = self._units.fitting(nodes, self._ratios)
        config[protocol.SERVER_ROUND_KEY] = server_round
        record = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config})
        self._sent_at = time.monotonic()
        messages = self._construct_messages(record, nodes, MessageType.TRAIN)
        self._units.give(messages, self._ratios, self.arrayrecord_key)
        self._before = arrays
        return messages

    def _sending(self, server_round: int, messages: list[Message]) -> list[Message]:
        self._sent = messages if server_round > self._done else []
        return self._sent

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average as Flower does, in the order of the client keys.

        A reply that cannot be averaged is left out and named in the log.
        """
        if server_round <= self._done:
            return self._restored(server_round)
        replies = self._sorted(replies, self._sent)
        usable = self._usable(server_round, replies)
        contents = [reply.content for reply in usable]
        arrays, model = None, self._model
        if contents:
            arrays = self._average(usable)
            model = GlobalModel(protocol.to_tensors(arrays))
        metrics = aggregate(contents, self.weighted_by_key, self.train_metrics_aggr_fn)
        self._finish(server_round, metrics, model)
        return arrays, metrics

    def _average(self, usable: Sequence[Message]) -> ArrayRecord:
        """Flower's mean; with narrow clients over those who hold an entry."""
        contents = [reply.content for reply in usable]
        ratios = [self._ratio_of(reply) for reply in usable]
        if min(ratios) == 1.0:
            return aggregate_arrayrecords(contents, self.weighted_by_key)
        models = [next(iter(content.array_records.values())) for content in contents]
        weights = [read_weight(read_metrics(c), self.weighted_by_key) for c in contents]
        last = protocol.to_tensors(self._before)
        return self._units.average(models, weights, ratios, last)

    def _ratio_of(self, reply: Message) -> float:
        return self._ratios.get(node_of(reply, sent_to(self._sent)), 1.0)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Send the global model for evaluation; to narrow clients its first units."""
        messages = super().configure_evaluate(server_round, arrays, config, grid)
        nodes = [message.metadata.dst_node_id for message in messages]
        ratios = {node: self.client_width(node) for node in nodes}
        kept = self._units.fitting(nodes, ratios)
        chosen = [message for message in messages if message.metadata.dst_node_id in kept]
        self._units.give(chosen, ratios, self.arrayrecord_key)
        return chosen

    def arrays_at(self, width: float) -> ArrayRecord:
        """The last round's model at a ratio: its first units; see `FedMA.arrays_at`."""
        check_arguments({"width": width})
        return self._units.narrow(protocol.to_arrays(self._model.tensors), width)

    def _finish(self, server_round: int, metrics: MetricRecord | None, model: GlobalModel) -> None:
        self._finished = server_round
        super()._finish(server_round, metrics, model)

    def _aggregated(self, server_round: int, outcome: Aggregated) -> Aggregated:
        """Take note of a round that a subclass has averaged by itself."""
        if server_round > max(self._done, self._finished):
            arrays, metrics = outcome
            tensors = None if arrays is None else protocol.to_tensors(arrays)
            model = self._model if tensors is None else GlobalModel(tensors)
            self._finish(server_round, metrics, model)
        return outcome

    def _initial_of(self, reply: Message) -> ArrayRecord:
        """The initial arrays at the width of a reply's client."""
        return self._units.narrow(self._initial, self._ratio_of(reply))

    def _usable(self, server_round: int, replies: list[Message]) -> list[Message]:
        """Replies that can be averaged; the exchange's record says why others cannot."""
        # Without an id a message was not sent: a wrapper has left it out.
        sent = [m for m in self._sent if m.metadata.message_id] or (self._sent if replies else [])
        if not sent:
            return []
        record = ExchangeRecord(server_round, 0, 1, LOCAL, cohort=len(sent))
        nodes = sent_to(sent)

        def leave_out(reply: Message, reason: str) -> None:
            node = node_of(reply, nodes)
            record.drop(self.client_key(node), node, reason)

        usable = usable_models(replies, self._initial_of, self.weighted_by_key, leave_out)
        record.heard(self.client_key(node_of(reply, nodes)) for reply in usable)
        record.bytes_down = protocol.count_bytes(message.content for message in sent)
        record.bytes_up = count_replies(replies)
        record.epochs = mean_epochs(
            metrics for reply in usable for metrics in reply.content.metric_records.values()
        )
        record.seconds_waiting = time.monotonic() - self._sent_at
        self.history.add(record)
        if usable:
            self._averaged = True
        elif not (self._averaged or self._done):
            raise AggregationError(all_failed(server_round, "train", record.dropped))
        else:
            self.history.give_up(server_round, "no client's reply can be used")
        return usable


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
