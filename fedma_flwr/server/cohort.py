"""The clients of a run: their keys, waiting for them, and sampling them with a seed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from logging import INFO, WARNING
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.exception import AggregationError
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from flwr.supercore import log

from fedma_flwr import protocol
from fedma_flwr.metrics import ReplyError, alike, read_evaluation
from fedma_flwr.protocol import Instruction
from fedma_flwr.records import ExchangeRecord, History, OnExchange

_POLL_SECONDS = 1.0
_LONGEST_KEY = 200  # characters; keys are kept, logged and written into checkpoints
TRAIN_STREAM, EVALUATE_STREAM = 0, 1  # streams of the sampling generator


class SeededCohort(FlowerFedAvg):
    """FedAvg with a cohort that depends on the seed alone, and one record an exchange.

    Flower draws node ids at random in every run. A small `hello` exchange therefore learns each
    client's key (``client-key`` or ``partition-id`` in its node config); sampling, matching and
    summation go by that key.

    Parameters
    ----------
    seed : int (default: 0)
        Seeds the sampling of clients; together with the round number it fixes the cohort.
    node_timeout : float (default: 600.0)
        Seconds to wait for `min_available_nodes`. After that the run fails in the first round; a
        later one makes do with the nodes that are there, or is given up below `min_train_nodes`.
    stage_timeout : float, optional (default: None)
        Seconds that clients have for one message; later replies are lost. None: the `timeout` that
        `start` is given.
    on_exchange : callable, optional
        Called with an `ExchangeRecord` after every exchange.
    **fedavg : Any
        FedAvg's keyword arguments.
    """

    #: Whether clients must answer the hello, that is whether they must have `fedma_mod`.
    needs_mod = False

    def __init__(
        self,
        *,
        seed: int = 0,
        node_timeout: float = 600.0,
        stage_timeout: float | None = None,
        on_exchange: OnExchange | None = None,
        **fedavg: Any,
    ) -> None:
        _check_fedavg(fedavg)
        super().__init__(**fedavg)
        for name, value in (("node_timeout", node_timeout), ("stage_timeout", stage_timeout)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} was {value}; it must be a number of seconds above 0.")
        if seed < 0:
            raise ValueError(f"seed was {seed}; it must not be negative.")
        self.seed = seed
        self.node_timeout = node_timeout
        self.stage_timeout = stage_timeout
        self.on_exchange = on_exchange
        self._begin(timeout=3600.0)

    def _begin(self, timeout: float) -> None:
        """Forget whatever an earlier run has left."""
        self.history = History(self.on_exchange)
        self._timeout = self.stage_timeout or timeout
        self._client_keys: dict[int, str] = {}

    # ------------------------------------------------------------------ who is there

    def client_key(self, node_id: int) -> str:
        """What identifies the client on a node; its node id while nothing better is known."""
        return self._client_keys.get(node_id, str(node_id))

    def _in_order(self, node_ids: Iterable[int]) -> list[int]:
        return sorted(node_ids, key=lambda node: _key_order(self.client_key(node)))

    def _sample(self, grid: Grid, server_round: int, stream: int) -> list[int]:
        """The cohort of a round, in the order of the client keys; empty if too few came."""
        train = stream == TRAIN_STREAM
        fraction = self.fraction_train if train else self.fraction_evaluate
        minimum = self.min_train_nodes if train else self.min_evaluate_nodes
        nodes = self._wait_for_nodes(grid, max(self.min_available_nodes, minimum), server_round)
        self._learn_keys(grid, nodes, server_round)
        nodes = self._in_order(nodes)
        size = max(int(len(nodes) * fraction), minimum)
        if size > len(nodes):
            if train:
                reason = f"{size} nodes are needed, but only {len(nodes)} were connected"
                self.history.give_up(server_round, reason)
            return []
        generator = np.random.default_rng([self.seed, server_round, stream])
        chosen = sorted(generator.choice(len(nodes), size=size, replace=False))
        log(
            INFO,
            "%s: Sampled %s nodes (out of %s)",
            "configure_train" if train else "configure_evaluate",
            size,
            len(nodes),
        )
        return [nodes[index] for index in chosen]

    def _wait_for_nodes(self, grid: Grid, needed: int, server_round: int) -> list[int]:
        deadline = time.monotonic() + self.node_timeout
        while len(nodes := list(grid.get_node_ids())) < needed:
            if time.monotonic() >= deadline:
                problem = (
                    f"{needed} nodes are needed, but after {self.node_timeout:g} s "
                    f"(node_timeout) only {len(nodes)} were connected"
                )
                if server_round <= 1:
                    raise AggregationError(f"{problem}. Start more SuperNodes.")
                log(WARNING, "Round %s: %s.", server_round, problem)
                return nodes
            log(INFO, "Waiting for nodes to connect: %d of %d.", len(nodes), needed)
            time.sleep(min(_POLL_SECONDS, self.node_timeout))
        return nodes

    def _learn_keys(self, grid: Grid, nodes: Sequence[int], server_round: int) -> None:
        new = sorted(node for node in nodes if node not in self._client_keys)
        if not new:
            return
        instruction = Instruction(protocol.HELLO, round=server_round).to_record()
        content = RecordDict({protocol.FEDMA_KEY: instruction})
        messages = self._construct_messages(content, new, MessageType.TRAIN)
        started = time.monotonic()
        replies = list(grid.send_and_receive(list(messages), timeout=self._timeout))
        by_message = sent_to(messages)
        problems: Counter[str] = Counter()
        for reply in replies:
            node = by_message[reply.metadata.reply_to_message_id]
            report = None if reply.has_error() else protocol.find_report(reply.content)
            if report is None or not 0 < len(report.client_key) <= _LONGEST_KEY:
                problems[error_reason(reply) or "a reply without FedMA's record"] += 1
                continue
            self._take_key(node, report.client_key, set(nodes))
        self._record_hello(server_round, messages, replies, time.monotonic() - started)
        self._check_hello(new, problems)

    def _take_key(self, node: int, key: str, online: set[int]) -> None:
        holders = [other for other, known in self._client_keys.items() if known == key]
        for other in holders:
            if other in online:
                log(WARNING, "Nodes %s and %s both call themselves client %s.", other, node, key)
                self._client_keys[node] = str(node)
                return
            del self._client_keys[other]  # the client is back under a new node id
        self._client_keys[node] = key

    def _check_hello(self, asked: Sequence[int], problems: Counter[str]) -> None:
        if self._client_keys or not problems:  # a single newcomer must not end the run
            return
        reason = problems.most_common(1)[0][0]
        if self.needs_mod:
            raise AggregationError(
                f"None of {len(asked)} clients answered FedMA's hello. The ClientApp must be made "
                "with `ClientApp(mods=[fedma_mod])` (from fedma_flwr import fedma_mod). "
                f"The clients said: {reason}"
            )
        log(
            INFO,
            "Clients do not use fedma_mod: they are told apart by node id, which changes from run "
            "to run, so equal seeds may sample other clients.",
        )

    def _record_hello(
        self,
        server_round: int,
        messages: Sequence[Message],
        replies: Sequence[Message],
        wait: float,
    ) -> None:
        record = ExchangeRecord(server_round, 0, 1, protocol.HELLO, cohort=len(messages))
        valid = [reply.content for reply in replies if not reply.has_error()]
        record.answered, record.seconds_waiting = len(valid), wait
        record.bytes_down = protocol.count_bytes(message.content for message in messages)
        record.bytes_up = protocol.count_bytes(valid)
        self.history.add(record)

    # ------------------------------------------------------------------ messages

    def _construct_messages(
        self, record: RecordDict, node_ids: list[int], message_type: str
    ) -> list[Message]:
        """Messages with a time to live, so that a slow client becomes an error reply."""
        return [
            Message(content=record, dst_node_id=node, message_type=message_type, ttl=self._timeout)
            for node in node_ids
        ]

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Send the global model to the clients sampled for federated evaluation."""
        if self.fraction_evaluate == 0.0:
            return []
        nodes = self._sample(grid, server_round, EVALUATE_STREAM)
        config["server-round"] = server_round
        record = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config})
        self._evaluated = self._construct_messages(record, nodes, MessageType.EVALUATE)
        return self._evaluated

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Aggregate the replies in the order of the client keys.

        A reply that cannot be used is left out and named in the log: evaluation never fails a run.
        """
        replies = list(replies)
        if not replies:
            return None
        usable = []
        for reply in self._sorted(replies, self._evaluated):
            try:
                if reply.has_error():
                    raise ReplyError(error_reason(reply))
                usable.append((reply, read_evaluation(reply.content, self.weighted_by_key)))
            except ReplyError as error:
                self._leave_out(server_round, reply, str(error))
        contents = []
        for (reply, _), usual in zip(usable, alike([m for _, m in usable]), strict=True):
            if usual:
                contents.append(reply.content)
            else:
                self._leave_out(server_round, reply, "its metrics are not those of most clients")
        return self.evaluate_metrics_aggr_fn(contents, self.weighted_by_key) if contents else None

    def _leave_out(self, server_round: int, reply: Message, reason: str) -> None:
        node = sent_to(self._evaluated)[reply.metadata.reply_to_message_id]
        log(
            WARNING,
            "Round %s: client %s (node %s) is left out of the evaluation: %s",
            server_round,
            self.client_key(node),
            node,
            reason,
        )

    def _sorted(self, replies: Iterable[Message], sent: Iterable[Message]) -> list[Message]:
        nodes = sent_to(sent)
        return sorted(
            replies,
            key=lambda r: _key_order(self.client_key(nodes[r.metadata.reply_to_message_id])),
        )


def sent_to(messages: Iterable[Message]) -> dict[str, int]:
    """Node of each sent message by message id (errors that the SuperLink makes name node 1)."""
    return {message.metadata.message_id: message.metadata.dst_node_id for message in messages}


def error_reason(reply: Message) -> str:
    """Why a reply is an error; empty if it is none."""
    if not reply.has_error():
        return ""
    return f"error {reply.error.code}: {(reply.error.reason or 'no reason given').strip()}"


def _key_order(key: str) -> tuple[int, int, str]:
    return (0, int(key), key) if key.isascii() and key.isdigit() else (1, 0, key)


def _check_fedavg(arguments: dict[str, Any]) -> None:
    for name in ("fraction_train", "fraction_evaluate"):
        value = arguments.get(name, 1.0)
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} was {value}; it must lie between 0 and 1.")
    for name in ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes"):
        value = arguments.get(name, 2)
        if value < 1:
            raise ValueError(f"{name} was {value}; at least one client is needed.")
