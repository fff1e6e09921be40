"""Flower's messages: making them, whom they went to, and why a reply is an error."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from torch import Tensor

from fedma_flwr import protocol, reading, wire
from fedma_flwr.server.reply_errors import ReplyError, refusing


def make_message(
    content: RecordDict, node: int, message_type: str, ttl: float, group_id: str | None = None
) -> Message:
    """A message that a slow client answers with an error: without a `ttl` it never answers."""
    return Message(
        content=content, dst_node_id=node, message_type=message_type, ttl=ttl, group_id=group_id
    )


def sent_to(messages: Iterable[Message]) -> dict[str, int]:
    """Node of each sent message by message id (errors that the SuperLink makes name node 1)."""
    return {message.metadata.message_id: message.metadata.dst_node_id for message in messages}


def node_of(reply: Message, sent: Mapping[str, int]) -> int:
    """The node that a reply is of; its own word for it if the message is not one of `sent`."""
    return sent.get(reply.metadata.reply_to_message_id, reply.metadata.src_node_id)


def error_reason(reply: Message) -> str:
    """Why a reply is an error, cut and on one line; empty if it is none."""
    if not reply.has_error():
        return ""
    reason = (reply.error.reason or "").strip() or "no reason given"
    return f"error {reply.error.code}: {reading.plain(reason)}"


def count_reply(reply: Message, most: float = math.inf) -> int:
    """Bytes of a reply's serialised records; 0 for an error.

    Parameters
    ----------
    reply : Message
        Whatever has come.
    most : float (default: infinity)
        Bytes that it can need.

    Raises
    ------
    ReplyError
        If they cannot be serialised, or are more than that.
    """
    if reply.has_error():
        return 0
    with refusing():
        # Whatever is far too large is not even copied to be counted.
        size = wire.data_bytes(reply.content)
        size = protocol.count_bytes([reply.content]) if size <= most else size
    if size > most:
        raise ReplyError(f"the reply has {size} bytes; at most {most} can be needed")
    return size


def count_replies(replies: Iterable[Message]) -> int:
    """Bytes of all replies' serialised records; those that cannot be serialised have none."""
    total = 0
    for reply in replies:
        with suppress(ReplyError):
            total += count_reply(reply)
    return total


def counters(server_round: int, exchange: int) -> dict[str, int]:
    """Entries of every message's config that tell where in the run it stands."""
    return {protocol.SERVER_ROUND_KEY: server_round, protocol.SERVER_EXCHANGE_KEY: exchange}


def hello_content(
    instruction: protocol.Instruction, config: Mapping[str, Any], *, configrecord_key: str
) -> RecordDict:
    """The content of a hello; where FedMA sends it, it looks like a stage's for others' mods."""
    if instruction.stages:
        return stage_content(instruction, config, {}, configrecord_key=configrecord_key)
    # To clients without the mod: a train function that gets no arrays does not begin to train.
    return RecordDict(
        {configrecord_key: ConfigRecord(dict(config)), protocol.FEDMA_KEY: instruction.to_record()}
    )


def stage_content(
    instruction: protocol.Instruction,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    configrecord_key: str,
    made: wire.Made | None = None,
) -> RecordDict:
    """The content of a stage's message: FedAvg's records first, the ArrayRecord may be empty.

    What is `made` of tensors is made once for all messages that are given the same dict.
    """
    return RecordDict(
        {
            instruction.arrays_key: protocol.to_arrays(tensors, instruction.wire_dtype, made),
            configrecord_key: ConfigRecord(dict(config)),
            protocol.FEDMA_KEY: instruction.to_record(),
        }
    )
