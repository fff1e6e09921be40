"""The hello: a small exchange that asks nodes for their client keys."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from logging import INFO
from typing import Any

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.exception import AggregationError
from flwr.supercore import log

from fedma_flwr import protocol
from fedma_flwr.incompatible_mods import incompatible_mod, why_not
from fedma_flwr.server.client_keys import LONGEST_KEY, ClientKeys, public_keys
from fedma_flwr.server.client_widths import ClientWidths
from fedma_flwr.server.history import ExchangeRecord, History
from fedma_flwr.server.messages import (
    count_replies,
    count_reply,
    counters,
    error_reason,
    hello_content,
    make_message,
    node_of,
    sent_to,
)
from fedma_flwr.server.reply_errors import ReplyError, refusing

_MOST_BYTES = 2**20  # of an answer to a hello


@dataclass(frozen=True)
class HelloLike:
    """What stages' messages are like: others' mods find the same in a hello.

    Parameters
    ----------
    stages : int (default: 0)
        Of a round; 0 if no stages of FedMA follow.
    config : mapping
        The user's train config.
    config_key, arrays_key : str
        FedAvg's ``configrecord_key`` and ``arrayrecord_key``.
    """

    stages: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)
    config_key: str = protocol.CONFIG_KEY
    arrays_key: str = protocol.ARRAYS_KEY

    def content(self, server_round: int) -> RecordDict:
        """The content of a hello."""
        hello = protocol.Instruction(
            protocol.HELLO, round=server_round, stages=self.stages, arrays_key=self.arrays_key
        )
        number = (server_round - 1) * self.stages  # of the exchange before
        config = {**self.config, **counters(server_round, number)}
        return hello_content(hello, config, configrecord_key=self.config_key)


def say_hello(
    grid: Grid,
    nodes: Sequence[int],
    server_round: int,
    keys: ClientKeys,
    history: History,
    *,
    widths: ClientWidths,
    timeout: float,
    in_vain: set[int],
    needs_mod: bool,
    like: HelloLike,
) -> None:
    """Ask the nodes whose client key is not known.

    Parameters
    ----------
    grid : Grid
        Where the nodes are.
    nodes : sequence of int
        All that are online.
    server_round : int
        Communication round, for the record.
    keys : ClientKeys
        Gets what is learned.
    history : History
        Gets the exchange's record, if there is anybody to ask.
    widths : ClientWidths
        Gets what clients say of their widths.
    timeout : float
        Seconds that clients have to answer.
    in_vain : set of int
        Nodes that have not answered so far: they are not asked again. Changed here.
    needs_mod : bool
        Whether clients must have `fedma_mod`, which answers.
    like : HelloLike
        What the messages of stages are like.

    Raises
    ------
    AggregationError
        If clients must have `fedma_mod`, none is known to have it, and some say why not.
    """
    asked = [node for node in keys.unknown(nodes) if node not in in_vain]
    if not asked:
        return
    content = like.content(server_round)
    messages = [make_message(content, node, MessageType.TRAIN, timeout) for node in asked]
    started = time.monotonic()
    replies = list(grid.send_and_receive(messages, timeout=timeout))
    waiting = sent_to(messages)
    in_vain |= set(asked) - {node_of(reply, waiting) for reply in replies}
    problems = _take_keys(replies, waiting, keys, set(nodes), public_keys(grid), widths=widths)
    record = _record(server_round, messages, replies)
    record.seconds_waiting = time.monotonic() - started
    history.add(record)
    if not keys and problems:  # a single newcomer must not end the run
        _nobody_answered(asked, problems.most_common(1)[0][0], needs_mod)


def _take_keys(
    replies: Sequence[Message],
    waiting: Mapping[str, int],
    keys: ClientKeys,
    online: set[int],
    known: Mapping[int, bytes],
    *,
    widths: ClientWidths,
) -> Counter[str]:
    """Give nodes the keys and widths that they tell; what those say that tell none."""
    problems: Counter[str] = Counter()
    for reply in replies:
        try:
            report = _told(reply)
        except ReplyError as error:
            problems[str(error)] += 1
            continue
        node = node_of(reply, waiting)
        keys.take(node, report.client_key, online, known)
        widths.told(node, report.width)
    return problems


def _told(reply: Message) -> protocol.Report:
    """What a reply tells of the client, its key at least.

    Raises
    ------
    ReplyError
        If it has none.
    """
    with refusing():
        report = None if reply.has_error() else protocol.find_report(reply.content)
        if report is None or not 0 < len(report.client_key) <= LONGEST_KEY:
            raise ReplyError(error_reason(reply) or "a reply without FedMA's record")
        count_reply(reply, _MOST_BYTES)
    return report


def _record(
    server_round: int, messages: Sequence[Message], replies: Sequence[Message]
) -> ExchangeRecord:
    record = ExchangeRecord(server_round, 0, 1, protocol.HELLO, cohort=len(messages))
    record.answered = sum(not reply.has_error() for reply in replies)
    record.bytes_down = protocol.count_bytes(message.content for message in messages)
    record.bytes_up = count_replies(replies)
    return record


def _nobody_answered(asked: Sequence[int], reason: str, needs_mod: bool) -> None:
    if needs_mod:
        if (name := incompatible_mod(reason)) is not None:
            said = "" if why_not(name) in reason else f" The clients said: {reason}"
            raise AggregationError(f"{why_not(name)}{said}")
        raise AggregationError(
            f"None of {len(asked)} clients answered FedMA's hello: {protocol.ADD_THE_MOD}. "
            f"The clients said: {reason}. (A mod that fails on the hello, which has no metrics, "
            "must stand behind fedma_mod.)"
        )
    log(
        INFO,
        "Clients do not use fedma_mod: they are told apart by node id, which changes from run "
        "to run, so equal seeds may sample other clients.",
    )
