"""One stage's exchange with the cohort: send, read, send again what was lost, settle, record."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from logging import INFO, WARNING

import torch
from flwr.app import Message, MessageType
from flwr.serverapp import Grid
from flwr.supercore import log
from torch import Tensor

from fedma_flwr import protocol
from fedma_flwr.averaging import StageOutcome
from fedma_flwr.bounds import bound_weights, oversized
from fedma_flwr.cohort import sent_to
from fedma_flwr.matching import Matching
from fedma_flwr.metrics import FailedError, ReplyError
from fedma_flwr.records import ExchangeRecord, mean_epochs
from fedma_flwr.replies import StageReply, read_reply
from fedma_flwr.round import CommunicationRound, GlobalModel, identity_share


class Exchange:
    """One stage of a communication round.

    Parameters
    ----------
    current : CommunicationRound
        The round.
    stage : int
        Number of the stage.
    timeout : float
        Seconds that clients have for a message.
    tokens : dict of int to str
        The state token that each node is believed to hold; kept up to date.
    """

    def __init__(
        self, current: CommunicationRound, stage: int, timeout: float, tokens: dict[int, str]
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
            cohort=len(current.members),
        )
        self._timeout = timeout
        self._tokens = tokens
        self._started = time.monotonic()
        self._sent: list[Message] = []
        self._failed = 0

    @property
    def all_failed(self) -> bool:
        """Whether the round's whole cohort failed in this stage, each client by itself.

        A mistake in the clients' code does that; chance and hostile clients hardly can.
        """
        return self._failed == self.current.size

    def messages(self) -> list[Message]:
        """The messages to the whole cohort."""
        return self._make(list(self.current.members), resend=False)

    def _make(self, nodes: Sequence[int], resend: bool) -> list[Message]:
        self._sent = [
            Message(
                content=self.current.content(self.current.members[node], self.stage, resend),
                dst_node_id=node,
                message_type=MessageType.TRAIN,
                ttl=self._timeout,  # without it a slow client gives no reply at all, ever
                group_id=f"{self.current.number}.{self.stage}",
            )
            for node in nodes
        ]
        self.record.bytes_down += protocol.count_bytes(message.content for message in self._sent)
        return self._sent

    # ------------------------------------------------------------------ replies

    def receive(self, replies: Sequence[Message], grid: Grid) -> dict[int, StageReply]:
        """Valid replies by node, in the order of the client keys.

        Clients that have lost their state are sent everything and asked again; all others whose
        reply cannot be used are dropped and named.
        """
        received = self._read(replies)
        lost = [node for node, reply in received.items() if reply.update is None]
        if lost:
            received = {node: r for node, r in received.items() if r.update is not None}
            received.update(self._ask_again(lost, grid))
        received = {node: received[node] for node in self.current.members if node in received}
        received = self._bound(received)
        self.record.answered = len(received)
        self.record.seconds_waiting = time.monotonic() - self._started
        self.record.epochs = mean_epochs(
            [reply.content.metric_records[protocol.METRICS_KEY] for reply in received.values()]
        )
        return received

    def _bound(self, received: Mapping[int, StageReply]) -> dict[int, StageReply]:
        """Drop clients whose units are out of all proportion, and bound what the others weigh."""
        settings, model = self.current.settings, self.current.model.tensors
        updates = {node: reply.update for node, reply in received.items() if reply.update}
        ratio = settings.limits.max_norm_ratio
        for node, reason in oversized(settings.spec, updates, model, ratio).items():
            self._drop(node, reason)
            del updates[node]
        updates = bound_weights(updates, settings.limits.max_weight_ratio)
        key = settings.weighted_by_key
        return {node: received[node].weighing(update, key) for node, update in updates.items()}

    def _ask_again(self, lost: Sequence[int], grid: Grid) -> dict[int, StageReply]:
        self.record.resent = tuple(self.current.members[node].key for node in lost)
        log(INFO, "\tClients %s have lost their state: sending everything", self.record.resent)
        messages = self._make(lost, resend=True)
        answers = self._read(list(grid.send_and_receive(messages, timeout=self._timeout)))
        for node in [node for node, reply in answers.items() if reply.update is None]:
            self._drop(node, "the client does not keep its state")
            del answers[node]
        return answers

    def _read(self, replies: Sequence[Message]) -> dict[int, StageReply]:
        """Valid replies to what was sent last."""
        waiting = sent_to(self._sent)
        received = {}
        for reply in replies:
            node = waiting.pop(reply.metadata.reply_to_message_id, None)
            if node is None:  # answered twice
                continue
            member = self.current.members[node]
            try:
                self._count(reply)
                received[node] = read_reply(reply, self.current.expected(member, self.stage))
            except ReplyError as error:
                self._failed += isinstance(error, FailedError)
                self._drop(node, str(error))
                continue
            if received[node].update is not None:
                self._tokens[node] = member.token = self.current.token(self.stage)
                member.widths = {**received[node].widths, **member.widths}
        for node in waiting.values():
            self._failed += 1
            self._drop(node, f"no reply within {self._timeout:g} s")
        return received

    def _count(self, reply: Message) -> None:
        try:
            self.record.bytes_up += (
                0 if reply.has_error() else protocol.count_bytes([reply.content])
            )
        except (TypeError, ValueError) as error:
            raise ReplyError(f"the reply cannot be serialised: {error}") from error

    def _drop(self, node: int, reason: str) -> None:
        key = self.current.members[node].key
        self.record.dropped[key] = reason
        log(
            WARNING,
            "\tRound %s, stage %s: client %s (node %s) is dropped for the rest of the round: %s",
            self.record.round,
            self.stage,
            key,
            node,
            reason,
        )

    # ------------------------------------------------------------------ outcome

    def settle(
        self, received: Mapping[int, StageReply], model: GlobalModel, initial_parameters: int
    ) -> None:
        """Match and average what was received; complete the record and say it in the log."""
        started = time.monotonic()
        updates = {node: reply.update for node, reply in received.items() if reply.update}
        outcome = self.current.settle(self.stage, updates)
        self.record.seconds_matching = time.monotonic() - started
        self.record.widths = dict(self.current.widths)
        last = self.stage == self.record.stages - 1
        tensors = self.current.settled if last else model.tensors
        self.record.growth = count_parameters(tensors) / initial_parameters
        for group, matching in outcome.matchings.items():
            self._describe(group, matching)
        if last:
            self._describe_head(outcome)

    def _describe(self, group: str, matching: Matching) -> None:
        share = identity_share(matching.assignments)
        known = self.record.identity
        self.record.identity = share if known is None else min(known, share)
        held = torch.bincount(
            torch.as_tensor(matching.popularity), minlength=self.record.cohort + 1
        )
        self.record.popularity[group] = held[1:].tolist()
        self.record.objective[group] = float(matching.objective)
        log(
            INFO,
            "\tRound %s, stage %s: %s matched, %s -> %s units, identity for %.0f %% of clients",
            self.record.round,
            self.stage,
            group,
            self.current.settings.spec.groups[group].size,
            len(matching.popularity),
            100 * share,
        )

    def _describe_head(self, outcome: StageOutcome) -> None:
        settings = self.current.settings
        how = "class counts" if outcome.head_by_class else repr(settings.weighted_by_key)
        log(INFO, "\tRound %s: the head was averaged by %s", self.record.round, how)


def count_parameters(tensors: Mapping[str, Tensor]) -> int:
    """Numbers in a state dict."""
    return sum(tensor.numel() for tensor in tensors.values())
