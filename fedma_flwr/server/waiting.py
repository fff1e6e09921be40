"""How long an exchange waits for replies: a quorum, and nodes that did not answer the last time."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

#: Who did not answer last time gets so many times the seconds of the others, and so many more.
_TIMES, _GRACE_SECONDS = 2.0, 5.0


@dataclass
class Waiting:
    """When an exchange ends before its deadline.

    A node that has not answered is *silent* until it is heard of again, be it by a late reply. An
    exchange that only silent nodes have not answered ends soon after the others have: a node that
    hangs costs its deadline once, not in every exchange.

    Parameters
    ----------
    quorum : float (default: 1.0)
        Share of those that are asked, above 0, with whose answers an exchange ends.
    """

    quorum: float = 1.0
    silent: set[int] = field(default_factory=set)
    late: dict[str, int] = field(default_factory=dict)  # messages without a reply, and their nodes

    def is_over(
        self, asked: int, answered: int, waiting: Collection[int], seconds: float, last: float
    ) -> bool:
        """Whether the exchange need not wait any longer.

        Parameters
        ----------
        asked, answered : int
            Nodes that were asked, and those of them whose answer was no error.
        waiting : collection of int
            Nodes that have not answered.
        seconds, last : float
            Since the messages were sent: until now, and until the last answer came.
        """
        if answered >= math.ceil(self.quorum * asked - 1e-9):
            return True
        only_silent = all(node in self.silent for node in waiting)
        return only_silent and answered > 0 and seconds > _TIMES * last + _GRACE_SECONDS

    def heard(self, message_id: str, node: int) -> None:
        """Take note of a node's answer, whenever it comes."""
        self.late.pop(message_id, None)
        self.silent.discard(node)

    def missed(self, waiting: Mapping[str, int]) -> None:
        """Take note of messages without a reply, by their ids; of a node the newest is kept."""
        nodes = set(waiting.values())
        self.late = {key: node for key, node in self.late.items() if node not in nodes}
        self.late.update(waiting)
        self.silent |= nodes

    def keep(self, nodes: Collection[int]) -> None:
        """Forget all nodes but these: the others are gone."""
        self.silent &= set(nodes)
        self.late = {key: node for key, node in self.late.items() if node in self.silent}

    def forget(self, message_ids: Iterable[str]) -> None:
        """Await these late replies no more."""
        for key in list(message_ids):
            self.late.pop(key, None)
