"""Replies to evaluate messages: which of them count."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flwr.app import Message, MetricRecord, RecordDict

from fedma_flwr.server.messages import count_reply, error_reason
from fedma_flwr.server.reply_errors import ReplyError, refusing
from fedma_flwr.server.reply_metrics import alike, read_evaluation


def usable_evaluations(
    replies: Sequence[Message], weighted_by_key: str, leave_out: Callable[[Message, str], None]
) -> list[RecordDict]:
    """Contents that can be aggregated, in the order of the replies.

    Parameters
    ----------
    replies : sequence of Message
        What the clients sent.
    weighted_by_key : str
        Metric that every reply must have.
    leave_out : callable
        Called with each reply that cannot be used, and the reason.
    """
    usable = []
    for reply in replies:
        try:
            with refusing():
                usable.append((reply, _read(reply, weighted_by_key)))
        except ReplyError as error:
            leave_out(reply, str(error))
    contents = []
    for (reply, _), usual in zip(usable, alike([m for _, m in usable]), strict=True):
        if usual:
            contents.append(reply.content)
        else:
            leave_out(reply, "its metrics are not those of most clients")
    return contents


def _read(reply: Message, weighted_by_key: str) -> MetricRecord:
    if reply.has_error():
        raise ReplyError(error_reason(reply))
    count_reply(reply)
    return read_evaluation(reply.content, weighted_by_key)
