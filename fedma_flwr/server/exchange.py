"""One stage's messages: send, read, send again what was lost. Bytes and tokens are kept here."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

from fedma_flwr import protocol, wire
from fedma_flwr.averaging import judge
from fedma_flwr.averaging.head_moments import NO_TARGETS
from fedma_flwr.matching.memory import give_back
from fedma_flwr.server.history import ExchangeRecord, mean_epochs
from fedma_flwr.server.ignored_config import IgnoredConfig
from fedma_flwr.server.members import Member
from fedma_flwr.server.messages import (
    count_reply,
    make_message,
    node_of,
    sent_to,
    stage_content,
)
from fedma_flwr.server.replies import StageReply, read_reply
from fedma_flwr.server.reply_errors import ReplyError
from fedma_flwr.server.round import CommunicationRound


class Exchange:
    """One stage of a communication round.

    Parameters
    ----------
    current : CommunicationRound
        The round.
    stage : int
        Number of the stage.
    timeout : float
        Seconds that clients have for the stage, also those that are sent everything in it.
    tokens : dict of int to str
        The state token that each node is believed to hold; kept up to date here, nowhere else.
    enough : int (default: 0)
        With fewer answers in a later stage the others are asked once more, for as long again.

    Attributes
    ----------
    lets_go : bool
        Whether replies lose their arrays once they are decoded: nobody else looks at them.
    """

    lets_go = True

    def __init__(
        self,
        current: CommunicationRound,
        stage: int,
        timeout: float,
        tokens: dict[int, str],
        *,
        enough: int = 0,
    ) -> None:
        self.current = current
        self.stage = stage
        planned = current.settings.plan[stage]
        self.record = ExchangeRecord(
            round=current.number,
            stage=stage,
            stages=len(current.settings.plan),
            name=planned.name,
            groups=planned.groups,
            cohort=len(current.asked(stage)),
        )
        trains = not current.settings.trains_nothing(stage)
        overrides = current.settings.config_overrides.get(planned.name, {}) if trains else {}
        self._ignored = IgnoredConfig(planned.name, overrides)
        self._asked = dict(current.asked(stage))
        self._timeout = timeout
        self._enough = enough
        self._tokens = tokens
        self._started = time.monotonic()
        self._sent: list[Message] = []

    @property
    def asks_most(self) -> bool:
        """Whether more than half of the round's cohort was asked.

        If none of them has sent what can be used, that is hardly chance: they share a mistake.
        """
        return 2 * len(self._asked) > self.current.size

    def messages(self) -> list[Message]:
        """The messages to the whole cohort."""
        return self._make(list(self._asked), self._tokens)

    def _make(
        self, nodes: Sequence[int], held: Mapping[int, str], *, lost: bool = False
    ) -> list[Message]:
        made: wire.Made = {}  # tensors that go to many clients are converted once
        return [self._message(node, held.get(node, ""), lost, made) for node in nodes]

    def sending(self, messages: Sequence[Message]) -> None:
        """Take note of the messages that are going out: to the clients whom they go to."""
        self._only({message.metadata.dst_node_id for message in messages})
        self._note(messages)

    def _note(self, messages: Sequence[Message]) -> None:
        self._sent = list(messages)
        self.record.bytes_down += protocol.count_bytes(message.content for message in messages)

    def _only(self, nodes: Collection[int]) -> None:
        """Go on with these clients: the others have not been asked."""
        self._asked = {node: member for node, member in self._asked.items() if node in nodes}
        self.record.cohort = len(self._asked)

    def leave_out(self, message_ids: Collection[str], who: str) -> None:
        """Go on without clients whose reply an override has not handed on."""
        nodes = {n for key, n in sent_to(self._sent).items() if key in message_ids}
        for node in nodes & self._asked.keys():
            self._refuse(node, f"{who} has left out its reply")
        self._asked = {node: m for node, m in self._asked.items() if node not in nodes}
        self._sent = [m for m in self._sent if m.metadata.dst_node_id not in nodes]

    def _message(self, node: int, held: str, lost: bool, made: wire.Made) -> Message:
        out = self.current.outgoing(self._asked[node], self.stage, held, lost=lost)
        content = stage_content(
            out.instruction,
            out.config,
            out.tensors,
            configrecord_key=self.current.settings.configrecord_key,
            made=made,
        )
        changes = self._asked[node].changes
        for name, record in changes.records.items():
            content[name] = record
        return make_message(
            content,
            node,
            changes.message_type,
            ttl=self._timeout,
            group_id=f"{self.current.number}.{self.stage}",
        )

    # ------------------------------------------------------------------ replies

    def receive(self, replies: Sequence[Message], grid: Grid) -> dict[int, StageReply]:
        """Valid replies by node, in the order of the client keys.

        Clients that have lost their state are sent everything and asked again; all others whose
        reply cannot be used are dropped and named.
        """
        self._forget_unsent(replies)
        received = self._with_lost(self._read(replies), grid)
        if self._too_few(received) and not self.lacks_targets(received):
            missing = [node for node in self._asked if node not in received]
            received.update(self._ask_again(missing, grid, self._timeout))
        received = {node: received[node] for node in self._asked if node in received}
        received = self._bound(received)
        if not self.current.model.token:  # once: all rounds call the same function
            self._ignored.warn()
        self.record.heard(self._asked[node].key for node in received)
        self.record.seconds_waiting = time.monotonic() - self._started
        self.record.epochs = mean_epochs(reply.metrics for reply in received.values())
        return received

    def lacks_targets(self, received: Collection[int]) -> bool:
        """Whether nobody has sent moments, since the clients' loss tells no targets."""
        reasons = self.record.dropped.values()
        return not received and bool(reasons) and all(NO_TARGETS in reason for reason in reasons)

    def _forget_unsent(self, replies: Sequence[Message]) -> None:
        """Go on without clients whose message never went out: a wrapper has left it out.

        A grid gives the messages that it sends their ids.
        """
        unsent = {m.metadata.dst_node_id for m in self._sent if not m.metadata.message_id}
        if unsent and (len(unsent) < len(self._sent) or not replies):
            self._sent = [m for m in self._sent if m.metadata.dst_node_id not in unsent]
            self._only(self._asked.keys() - unsent)
            self.current.keep({node: m.changes for node, m in self._asked.items()})

    def _bound(self, received: Mapping[int, StageReply]) -> dict[int, StageReply]:
        """Drop clients whose units are out of all proportion, and bound what the others weigh."""
        settings, model = self.current.settings, self.current.model.tensors
        sent = {node: reply.update for node, reply in received.items() if reply.update}
        updates, refused = judge(
            settings.spec,
            sent,
            model,
            settings.limits,
            settings.averaging,
            first_round=not self.current.model.token,
        )
        for node, reason in refused.items():
            # Training that has got out of hand says nothing about the client's examples: only it
            # may have a class, and its moments are those of settled layers.
            (self._drop if sent[node].moments is None else self._refuse)(node, reason)
        key = settings.weighted_by_key
        return {node: received[node].weighing(update, key) for node, update in updates.items()}

    def _too_few(self, received: Collection[int]) -> bool:
        """Whether to ask once more before the work of earlier stages is given up.

        Not if all fail in a first round: that is a mistake that they share.
        """
        weather = len(received) > 0 or bool(self.current.model.token)
        return self.stage > 0 and len(received) < self._enough and weather

    def _with_lost(self, received: Mapping[int, StageReply], grid: Grid) -> dict[int, StageReply]:
        """Valid replies, also those of clients that first had lost their state."""
        lost = [node for node, reply in received.items() if reply.update is None]
        found = {node: reply for node, reply in received.items() if reply.update is not None}
        left = self._timeout - (time.monotonic() - self._started)
        if lost and left > 0:
            found.update(self._ask_again(lost, grid, left, lost=True))
        for node in lost if left <= 0 else ():
            self._drop(node, "it had lost its state, and the stage's time was over")
        return found

    def _ask_again(
        self, nodes: Sequence[int], grid: Grid, timeout: float, *, lost: bool = False
    ) -> dict[int, StageReply]:
        """Send clients everything, and read what they reply."""
        nodes = [node for node in nodes if node in self.current.asked(self.stage)]
        self.record.resend(self._asked[node].key for node in nodes)
        messages = self._make(nodes, held={}, lost=lost)
        self._note(messages)
        answers = self._read(list(grid.send_and_receive(messages, timeout=timeout)))
        for node in [node for node, reply in answers.items() if reply.update is None]:
            self._refuse(node, "the client does not keep its state")
            del answers[node]
        for node in answers:
            self.record.dropped.pop(self._asked[node].key, None)
        return answers

    def _read(self, replies: Sequence[Message]) -> dict[int, StageReply]:
        """Valid replies to what was sent last."""
        sent = sent_to(self._sent)
        waiting = {message.metadata.dst_node_id for message in self._sent}
        received = {}
        for number, reply in enumerate(replies):
            give_back(number)
            node = node_of(reply, sent)
            if node not in waiting:  # answered twice, or nobody has asked it
                continue
            waiting.remove(node)
            member = self._asked[node]
            try:
                expected = self.current.expected(member, self.stage)
                self.record.bytes_up += count_reply(reply, expected.most_bytes)
                received[node] = read_reply(reply, expected)
            except ReplyError as error:
                self._fail(member, str(error), again=reply.has_error())
                continue
            finally:
                if self.lets_go and not reply.has_error():
                    wire.let_go(reply.content)
            if received[node].update is not None:
                self._ignored.note(reply)
                # A guest does not hold its own units, so that it is sent everything next time.
                self._tokens[node] = "" if member.guest else self.current.token(self.stage)
                member.widths = {**received[node].widths, **member.widths}
        for node in sorted(waiting):
            self._drop(node, self._silence())
        return received

    def _silence(self) -> str:
        if time.monotonic() - self._started >= self._timeout:
            return f"no reply within {self._timeout:g} s"
        return "no reply before the stage ended, which others have answered"

    def _fail(self, member: Member, reason: str, *, again: bool) -> None:
        """Go on without a client; it is asked once more in this round if it was an error."""
        member.failures += 1
        (self._drop if again and member.failures == 1 else self._refuse)(member.node_id, reason)

    def _refuse(self, node: int, reason: str) -> None:
        """Drop a client for the rest of the round."""
        self.record.drop(self._asked[node].key, node, reason)
        self.current.exclude(node)

    def _drop(self, node: int, reason: str) -> None:
        """Do without a client in this stage; it is asked again in the next one."""
        self.record.drop(self._asked[node].key, node, reason, again=True)
