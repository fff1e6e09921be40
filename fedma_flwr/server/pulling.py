"""Replies are pulled one by one, each guarded: one that cannot be decoded costs its sender only.

Flower's grids pull all replies that are there at once. They are gone from the SuperLink then: if
the decoder raises on one, the others are lost, and with them the run.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from logging import DEBUG, WARNING
from typing import Any

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore import log
from flwr.supercore.run import Run

from fedma_flwr import reading
from fedma_flwr.server.progress import WaitingNote
from fedma_flwr.server.spill import Spill
from fedma_flwr.server.waiting import Waiting

#: A grid whose class has this attribute has all replies there will be as soon as it has pushed.
REPLIES_AT_ONCE = "replies_at_once"
_PULL_SECONDS = 3.0  # between two looks for replies, as in Flower's deployments
_MOST_FAILURES = 3  # of the connection, while one reply is pulled and others are not
_TRANSPORTS = {"httpx", "httpcore", "grpc", "requests"}  # packages whose errors are no reply's


class GuardedGrid(Grid):
    """A grid whose replies are there or are errors: none of them raises.

    A reply that cannot be decoded, or that claims to answer another message than it was stored
    for, becomes an error reply of its sender. All else is the other grid's.

    Parameters
    ----------
    grid : Grid
        Flower's, or any other. If its class has a `send_and_receive` of its own, that is called;
        replies are pulled one by one if it raises.

    Attributes
    ----------
    waiting : Waiting
        When it stops waiting for replies before the deadline.
    spill : Spill
        Where replies go that are too many for the memory.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.waiting = Waiting()
        self.spill = Spill(None)

    def __getattr__(self, name: str) -> Any:
        """Whatever else a grid has."""
        if name == "grid":  # copied or unpickled before `__init__`
            raise AttributeError(name)
        return getattr(self.grid, name)

    def set_run(self, run: Run) -> None:
        """See Flower's ``Grid``."""
        self.grid.set_run(run)

    @property
    def run(self) -> Run:
        """See Flower's ``Grid``."""
        return self.grid.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """See Flower's ``Grid``."""
        return self.grid.create_message(*args, **kwargs)

    def get_node_ids(self) -> Iterable[int]:
        """See Flower's ``Grid``."""
        return self.grid.get_node_ids()

    def get_nodes(self) -> Iterable[NodeInfo]:
        """See Flower's ``Grid``."""
        return self.grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See Flower's ``Grid``."""
        return self.grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See Flower's ``Grid``; not guarded."""
        return self.grid.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Send messages, and wait for what answers them; see Flower's ``Grid``.

        Parameters
        ----------
        messages : iterable of Message
            To be sent.
        timeout : float, optional
            Seconds to wait. None: until there is an answer to each.

        Returns
        -------
        list of Message
            At most one a message, in the order in which they came. Each has a content or an error.

        Raises
        ------
        Exception
            If messages cannot be sent, or if the grid has lost its connection.
        """
        messages = list(messages)
        self.spill.begin()
        deadline = None if timeout is None else time.monotonic() + timeout
        if _pushes_and_pulls(self.grid):
            pushed = set(self.grid.push_messages(messages))
        else:
            try:
                replies = self.grid.send_and_receive(messages, timeout=timeout)
                return self._noted(messages, [_readable(reply) for reply in replies])
            except Exception as error:
                pushed = {m.metadata.message_id for m in messages} - {""}
                if not pushed:
                    raise
                log(WARNING, "Replies are pulled one by one: %s", _words(error))
        sent = {m.metadata.message_id: m for m in messages if m.metadata.message_id in pushed}
        return self._pull_all(sent, deadline)

    def _noted(self, messages: list[Message], replies: list[Message]) -> list[Message]:
        """The replies of a grid that waits for them itself."""
        waiting = {m.metadata.message_id: m.metadata.dst_node_id for m in messages}
        for reply in replies:
            node = waiting.pop(reply.metadata.reply_to_message_id, None)
            if node is not None and not reply.has_error():
                self.waiting.heard(reply.metadata.reply_to_message_id, node)
        self.waiting.missed(waiting)
        return replies

    def _pull_all(self, sent: Mapping[str, Message], deadline: float | None) -> list[Message]:
        """Go on pulling until all have answered, or nobody is waited for any more."""
        received: list[Message] = []
        failures: dict[str, int] = {}
        nodes = {key: message.metadata.dst_node_id for key, message in sent.items()}
        waiting, started, last = dict(nodes), time.monotonic(), 0.0
        at_once, note = hasattr(self.grid, REPLIES_AT_ONCE), WaitingNote(len(sent))
        while at_once or deadline is None or time.monotonic() < deadline:
            for key in list(waiting):
                if (reply := self._pull(key, sent, failures)) is not None:
                    received.append(reply)
                    if not reply.has_error():
                        self.spill.put(reply.content)
                    node, last = waiting.pop(key), time.monotonic() - started
                    if not reply.has_error():
                        self.waiting.heard(key, node)
            note.see(received)
            self._pull_late()
            answered = sum(not reply.has_error() for reply in received)
            seconds = time.monotonic() - started
            if (
                at_once
                or not waiting
                or self.waiting.is_over(len(nodes), answered, waiting.values(), seconds, last)
            ):
                break
            time.sleep(getattr(self.grid, "pull_interval", _PULL_SECONDS))
        self.waiting.missed(waiting)
        return received

    def _pull_late(self) -> None:
        """Look for late replies: nobody needs them, but their nodes are alive."""
        for key, node in list(self.waiting.late.items()):
            try:
                replies = list(self.grid.pull_messages([key]))
            except Exception as error:  # hostile bytes, or the connection: not worth a run
                log(DEBUG, "A late reply of node %s cannot be read: %s", node, _words(error))
                self.waiting.forget([key])
                continue
            if any(not reply.has_error() for reply in replies):
                self.waiting.heard(key, node)
            elif replies:
                self.waiting.forget([key])

    def _pull(
        self, key: str, sent: Mapping[str, Message], failures: dict[str, int]
    ) -> Message | None:
        """The reply to one message, an error in its place, or None if it is not there yet."""
        try:
            came = list(self.grid.pull_messages([key]))
            replies = [r for r in came if r.metadata.reply_to_message_id == key]
            if came and not replies:
                raise ValueError("it says that it answers another message")
            return _checked(replies[0]) if replies else None
        except Exception as error:  # whatever hostile bytes provoke in Flower's decoder
            if _is_of_transport(error):
                list(self.grid.get_node_ids())  # raises if it is the connection
                failures[key] = failures.get(key, 0) + 1
                if failures[key] < _MOST_FAILURES and not hasattr(self.grid, REPLIES_AT_ONCE):
                    return None
            return _error_in_place(error, sent[key])


def guarded(grid: Grid) -> GuardedGrid:
    """A grid none of whose replies raises; the grid itself if it is one."""
    return grid if isinstance(grid, GuardedGrid) else GuardedGrid(grid)


def _pushes_and_pulls(grid: Grid) -> bool:
    """Whether `send_and_receive` is no more than push and pull: Flower's own, or a test grid's."""
    if "send_and_receive" in vars(grid):
        return False
    definer = next(cls for cls in type(grid).__mro__ if "send_and_receive" in vars(cls))
    return definer.__module__.startswith("flwr.") or REPLIES_AT_ONCE in vars(definer)


def _checked(reply: Message) -> Message:
    """A reply that has a content or an error; a reply without either raises."""
    if not reply.has_error():
        reply.content.values()
    return reply


def _readable(reply: Message) -> Message:
    """A reply of another's `send_and_receive`: an error if it has no content."""
    try:
        return _checked(reply)
    except Exception as error:  # as above
        return _error_in_place(error, reply, answers=reply.metadata.reply_to_message_id)


def _error_in_place(error: Exception, message: Message, answers: str = "") -> Message:
    """An error reply that stands for one that cannot be decoded."""
    reason = f"the reply cannot be decoded: {_words(error)}"
    reply = Message(Error(ErrorCode.UNKNOWN, reason), reply_to=message)
    if answers:
        reply.metadata.__dict__["_reply_to_message_id"] = answers
    return reply


def _words(error: Exception) -> str:
    return reading.plain(f"{type(error).__name__}: {error}")


def _is_of_transport(error: Exception) -> bool:
    """Whether it is the connection's rather than the decoder's."""
    packages = {cls.__module__.partition(".")[0] for cls in type(error).__mro__}
    return isinstance(error, OSError) or bool(packages & _TRANSPORTS)
