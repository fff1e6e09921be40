"""The clients of a run: waiting for them, and sampling them with a seed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from logging import INFO, WARNING
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.exception import AggregationError
from flwr.supercore import log

from fedma_flwr import protocol, reading
from fedma_flwr.server.argument_names import arguments_of, check_names
from fedma_flwr.server.arguments import check_arguments
from fedma_flwr.server.client_keys import LONGEST_KEY, ClientKeys
from fedma_flwr.server.client_widths import ClientWidths
from fedma_flwr.server.evaluation import usable_evaluations
from fedma_flwr.server.folders import as_folder, make_folder
from fedma_flwr.server.hello import HelloLike, say_hello
from fedma_flwr.server.history import History, OnExchange
from fedma_flwr.server.messages import make_message, node_of, sent_to
from fedma_flwr.server.overriding import OverridableStrategy
from fedma_flwr.server.pulling import guarded
from fedma_flwr.server.spill import Spill
from fedma_flwr.server.waiting import Waiting

_POLL_SECONDS = 1.0
_TIMEOUT = 3600.0  # Flower's, where `start` is not ours and tells none
TRAIN_STREAM, EVALUATE_STREAM, HEAD_STREAM = 0, 1, 2  # streams of the sampling generator


class SeededCohort(OverridableStrategy):
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
    registered_nodes : bool (default: False)
        Whether every SuperNode is registered with its public key (``--enable-supernode-auth``). A
        client key then stays with the public key that was first seen with it, for the whole run.
    stage_timeout : float, optional (default: None)
        Seconds that clients have for one message; later replies are lost. None: the `timeout` that
        `start` is given.
    quorum : float (default: 1.0)
        Share of the cohort, above 0, with whose answers a stage may end before its time is over.
        The others are asked again in the next stage; their late replies are dropped.
    hello_timeout : float (default: 120.0)
        Seconds that a node has for its first answer, which tells its client key.
    on_exchange : callable, optional
        Called with an `ExchangeRecord` after every exchange.
    client_widths : mapping of str to float, optional (default: None)
        By client key, how wide a narrow client's model is, relative to the initial one: above 0, at
        most 1. It wins over the node config's ``client-width``, which clients say themselves.
    spill_dir : str or Path, optional (default: None)
        Folder where a stage's replies wait on disk once they take more than 256 MiB of memory, in a
        file without a name, of which nothing is left. None: `output_dir` or `checkpoint_dir`;
        without these all replies are kept in memory.
    **fedavg : Any
        FedAvg's keyword arguments.
    """

    #: Whether clients must answer the hello, that is whether they must have `fedma_mod`.
    needs_mod = False
    _made_do_with: int | None = None  # nodes, after waiting for more in vain

    def __init__(
        self,
        *,
        seed: int = 0,
        node_timeout: float = 600.0,
        stage_timeout: float | None = None,
        quorum: float = 1.0,
        hello_timeout: float = 120.0,
        registered_nodes: bool = False,
        on_exchange: OnExchange | None = None,
        client_widths: Mapping[str, float] | None = None,
        spill_dir: str | Path | None = None,
        **fedavg: Any,
    ) -> None:
        """Check the arguments and keep them. Long because each has a line."""
        given = {k: v for k, v in locals().items() if k not in ("self", "__class__", "fedavg")}
        check_names(type(self), SeededCohort, fedavg, arguments_of(OverridableStrategy))
        check_arguments({**given, **fedavg})
        super().__init__(**fedavg)
        self.seed = seed
        self.node_timeout = node_timeout
        self.stage_timeout = stage_timeout
        self.quorum = quorum
        self.hello_timeout = hello_timeout
        self.on_exchange = on_exchange
        self.history = History(on_exchange)
        self.registered_nodes = registered_nodes
        self.client_widths = dict(client_widths or {})
        self._widths = ClientWidths(self.client_widths)
        self.spill_dir = None if spill_dir is None else as_folder("spill_dir", spill_dir)
        self._spill = Spill(None)
        self._keys = ClientKeys(registered=registered_nodes)
        self._online: list[int] = []  # nodes at the last sampling, in the order of the client keys
        self._timeout = stage_timeout or _TIMEOUT
        self._waiting = Waiting(quorum)
        self._asked_in_vain: set[int] = set()  # nodes that have not answered a hello
        self._evaluated: list[Message] = []
        self._last_round: int | None = None  # None: no run has begun

    def _enter_round(self, server_round: int, arrays: ArrayRecord) -> None:
        """Begin a run whose `start` is not ours: a subclass's, or that of a wrapper."""
        if self._last_round is None or server_round <= self._last_round:
            self._begin(arrays, _TIMEOUT)
        self._last_round = server_round

    def _begin(self, initial_arrays: ArrayRecord, timeout: float) -> None:
        """Forget whatever an earlier run has left."""
        self._last_round = 0
        self.history = History(self.on_exchange)
        self._keys = ClientKeys(registered=self.registered_nodes)
        self._widths = ClientWidths(self.client_widths)
        self._waiting = Waiting(self.quorum)
        self._asked_in_vain = set()
        self._made_do_with = None
        if (folder := self._spill_folder()) is not None:
            make_folder("spill_dir", folder)
        self._spill = Spill(folder)
        self._timeout = self.stage_timeout or timeout

    def _spill_folder(self) -> Path | None:
        """Where replies may wait on disk."""
        return self.spill_dir

    def client_key(self, node_id: int) -> str:
        """What identifies the client on a node; its node id while nothing better is known."""
        return self._keys.key(node_id)

    def client_width(self, node_id: int) -> float:
        """How wide the model of the client on a node is, relative to the initial one."""
        return self._widths.ratio(node_id, self.client_key(node_id))

    def _learn_keys(self, told: Mapping[int, str]) -> None:
        """Take the keys of clients that have not answered the hello, but a stage."""
        for node in self._keys.unknown(told):
            if 0 < len(told[node]) <= LONGEST_KEY:
                self._keys.take(node, told[node], set(self._online))

    # ------------------------------------------------------------------ who takes part

    def _sample(
        self, grid: Grid, server_round: int, stream: int, like: HelloLike | None = None
    ) -> list[int]:
        """The cohort of a round, in the order of the client keys; empty if too few came."""
        train = stream == TRAIN_STREAM
        fraction = self.fraction_train if train else self.fraction_evaluate
        minimum = self.min_train_nodes if train else self.min_evaluate_nodes
        grid = guarded(grid)
        grid.waiting, grid.spill = self._waiting, self._spill
        nodes = self._wait_for_nodes(grid, max(self.min_available_nodes, minimum), server_round)
        self._waiting.keep(nodes)
        self._greet(grid, nodes, server_round, like)
        size = max(int(len(nodes) * fraction), minimum)
        if size > len(nodes):
            if train:
                reason = f"{size} nodes are needed, but only {len(nodes)} were connected"
                self.history.give_up(server_round, reason)
            return []
        generator = np.random.default_rng([self.seed, server_round, stream])
        chosen = sorted(generator.choice(len(nodes), size=size, replace=False))
        where = "configure_train" if train else "configure_evaluate"
        log(INFO, "%s: Sampled %s nodes (out of %s)", where, size, len(nodes))
        self._online = self._keys.in_order(nodes)
        self._widths.check_keys(map(self.client_key, nodes))
        return [self._online[index] for index in chosen]

    def _greet(
        self, grid: Grid, nodes: Sequence[int], server_round: int, like: HelloLike | None
    ) -> None:
        """Ask nodes for their client keys, each once."""
        say_hello(
            grid,
            nodes,
            server_round,
            self._keys,
            self.history,
            widths=self._widths,
            timeout=min(self.hello_timeout, self._timeout),
            in_vain=self._asked_in_vain,
            needs_mod=self.needs_mod,
            like=like or HelloLike(config_key=self.configrecord_key),
        )

    def _others(self, cohort: Sequence[int], server_round: int, fraction: float) -> list[int]:
        """Nodes beside the cohort, so many that all are a fraction of those that are there.

        Who did not answer the last time is none of them: a stage would wait for it.
        """
        out = {*cohort, *self._waiting.silent}
        others = [node for node in self._online if node not in out]
        wanted = min(max(round(fraction * len(self._online)) - len(cohort), 0), len(others))
        generator = np.random.default_rng([self.seed, server_round, HEAD_STREAM])
        chosen = sorted(generator.choice(len(others), size=wanted, replace=False))
        return [others[index] for index in chosen]

    def _wait_for_nodes(self, grid: Grid, needed: int, server_round: int) -> list[int]:
        """All nodes, once enough are there; who was waited for in vain is so only once."""
        enough = min(needed, self._made_do_with or needed)
        deadline = time.monotonic() + self.node_timeout
        while len(nodes := list(grid.get_node_ids())) < enough:
            if time.monotonic() >= deadline:
                problem = (
                    f"{enough} nodes are needed, but after {self.node_timeout:g} s "
                    f"(node_timeout) only {len(nodes)} were connected"
                )
                if server_round <= 1:
                    raise AggregationError(f"{problem}. Start more SuperNodes.")
                log(WARNING, "Round %s: %s.", server_round, problem)
                break
            log(INFO, "Waiting for nodes to connect: %d of %d.", len(nodes), enough)
            time.sleep(min(_POLL_SECONDS, self.node_timeout))
        self._made_do_with = len(nodes) if len(nodes) < needed else None
        return nodes

    # ------------------------------------------------------------------ messages

    def _construct_messages(
        self, record: RecordDict, node_ids: list[int], message_type: str
    ) -> list[Message]:
        """Messages with a time to live, so that a slow client becomes an error reply."""
        return [make_message(record, node, message_type, self._timeout) for node in node_ids]

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Send the global model to the clients sampled for federated evaluation."""
        if self.fraction_evaluate == 0.0:
            return []
        nodes = self._sample(grid, server_round, EVALUATE_STREAM)
        config[protocol.SERVER_ROUND_KEY] = server_round
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

        def leave_out(reply: Message, reason: str) -> None:
            node = node_of(reply, sent_to(self._evaluated))
            log(
                WARNING,
                "Round %s: client %s (node %s) is left out of the evaluation: %s",
                server_round,
                self.client_key(node),
                node,
                reading.plain(reason),
            )

        in_order = self._sorted(replies, self._evaluated)
        contents = usable_evaluations(in_order, self.weighted_by_key, leave_out)
        return self.evaluate_metrics_aggr_fn(contents, self.weighted_by_key) if contents else None

    def _sorted(self, replies: Iterable[Message], sent: Iterable[Message]) -> list[Message]:
        nodes = sent_to(sent)
        return sorted(replies, key=lambda reply: self._keys.order(node_of(reply, nodes)))
