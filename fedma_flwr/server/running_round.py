"""A communication round on its way: the first stage's messages, then stage by stage to the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from logging import INFO

from flwr.app import Message
from flwr.serverapp import Grid
from flwr.supercore import log

from fedma_flwr.server.exchange import Exchange
from fedma_flwr.server.history import History
from fedma_flwr.server.matchings_folder import MatchingsFolder, SavedRound
from fedma_flwr.server.message_changes import MadeMessage
from fedma_flwr.server.replies import Told
from fedma_flwr.server.round import CommunicationRound
from fedma_flwr.server.stage_end import end_stage


@dataclass
class RunningRound:
    """The exchanges of one communication round.

    The first stage's messages go out by whoever calls the strategy, and may be changed on their
    way. Later stages are sent from here, with the same changes and to the same clients.

    Parameters
    ----------
    current : CommunicationRound
        The round.
    grid : Grid
        Where later stages are sent.
    history : History
        Gets a record of each exchange.
    timeout : float
        Seconds that clients have for a message.
    tokens : dict of int to str
        The state token that each node is believed to hold.
    min_train_nodes : int
        With fewer clients the round is given up.
    matchings : MatchingsFolder or None
        Where saved matchings are.
    sender, receiver : str
        The methods that messages and replies pass through, for errors.
    replies_are_seen : bool (default: True)
        Whether a subclass may look at the first stage's replies after they were read.
    """

    current: CommunicationRound
    grid: Grid
    history: History
    timeout: float
    tokens: dict[int, str]
    min_train_nodes: int
    matchings: MatchingsFolder | None
    sender: str
    receiver: str
    replies_are_seen: bool = True
    told: list[dict[int, Told]] = field(default_factory=list)  # by stage: what clients report

    told_keys: dict[int, str] = field(default_factory=dict)  # what clients call themselves
    told_ratios: dict[int, float] = field(default_factory=dict)  # how wide they say they are

    def __post_init__(self) -> None:
        self._exchange = self._stage(0)
        self._made: dict[int, MadeMessage] = {}
        self._came: dict[str, dict[str, bytes]] = {}

    def _stage(self, stage: int) -> Exchange:
        enough = max(self.min_train_nodes, 1)
        exchange = Exchange(self.current, stage, self.timeout, self.tokens, enough=enough)
        exchange.lets_go = stage > 0 or not self.replies_are_seen
        return exchange

    # ------------------------------------------------------------------ the first stage

    def first_messages(self) -> list[Message]:
        """The first stage's messages, as FedMA makes them."""
        settings, messages = self.current.settings, self._exchange.messages()
        keys = settings.configrecord_key, settings.arrayrecord_key
        self._made = {m.metadata.dst_node_id: MadeMessage.of(m, *keys) for m in messages}
        return messages

    def sending(self, messages: Sequence[Message]) -> None:
        """Take note of the messages that are going out, as an override has left them.

        Raises
        ------
        ValueError
            If they are not of this round's clients, or what a stage needs was changed in them; or
            if a saved matching is not of this model and these clients.
        """
        changes = {}
        for message in messages:
            node = message.metadata.dst_node_id
            if node not in self._made or node in changes:
                raise ValueError(
                    f"{self.sender} returned {'a second message' if node in changes else 'one'} "
                    f"for node {node}: return at most one for each client that "
                    "`super().configure_train(...)` has sampled."
                )
            changes[node] = self._made[node].changes(message, self.sender)
        if left_out := len(self._made) - len(changes):
            log(INFO, "%s has left out %s of %s clients", self.sender, left_out, len(self._made))
        self._made.clear()
        self.current.keep(changes)
        self._exchange.sending(messages)
        keys = [member.key for member in self.current.members.values()]
        self.current.saved = SavedRound(self.matchings, self.current.number, keys)

    def receiving(self, replies: Sequence[Message]) -> None:
        """Take note of the replies that have come, before an override has its hands on them."""
        self._came = {r.metadata.reply_to_message_id: _data(r) for r in replies}

    # ------------------------------------------------------------------ to the end

    def finish(self, replies: Sequence[Message]) -> bool:
        """End the first stage, and run the others; False if the round was given up.

        Raises
        ------
        AggregationError
            If nobody's reply can be used in a stage before the first complete round.
        ValueError
            If an override has changed the replies of a first stage that others follow.
        """
        self._check_replies(replies)
        self._exchange.leave_out(self._came.keys() - _ids(replies), self.receiver)
        self._came.clear()
        for stage in range(len(self.current.settings.plan)):
            if self.current.skips(stage):
                self.current.average_head()
                continue
            if stage:
                self._exchange = self._stage(stage)
                messages = self._exchange.messages()
                self._exchange.sending(messages)
                replies = list(self.grid.send_and_receive(messages, timeout=self.timeout))
            if not self._end_stage(replies):
                return False
        return True

    def _end_stage(self, replies: Sequence[Message]) -> bool:
        """End a stage; its replies' tensors are let go before the next one's come."""
        received = end_stage(
            self._exchange,
            replies,
            self.grid,
            self.history,
            min_train_nodes=self.min_train_nodes,
        )
        if received is None:
            return False
        self.told_ratios |= {node: reply.ratio for node, reply in received.items()}
        self.told_keys |= {node: reply.client_key for node, reply in received.items()}
        # Metrics only: the tensors of all clients and stages would not fit into memory.
        self.told.append({node: reply.told for node, reply in received.items()})
        return True

    def _check_replies(self, replies: Sequence[Message]) -> None:
        if len(self.current.settings.plan) == 1:
            return
        for reply in replies:
            if _data(reply) != self._came.get(reply.metadata.reply_to_message_id, _data(reply)):
                raise ValueError(
                    f"{self.receiver} changed the arrays of a reply, but it is shown those of the "
                    f"first of {len(self.current.settings.plan)} stages only: change what it "
                    "returns instead, or use one_shot=True, `averaging` or max_norm_ratio."
                )


def _ids(replies: Sequence[Message]) -> set[str]:
    return {reply.metadata.reply_to_message_id for reply in replies}


def _data(reply: Message) -> dict[str, bytes]:
    """References to the bytes of a reply's arrays."""
    if reply.has_error():
        return {}
    return {
        f"{key}.{name}": array.data
        for key, record in reply.content.array_records.items()
        for name, array in record.items()
    }
