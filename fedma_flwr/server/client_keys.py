"""Which client is on which node: its key, and the order that keys give."""

from __future__ import annotations

from collections.abc import Iterable
from logging import WARNING

from flwr.supercore import log

from fedma_flwr import reading

LONGEST_KEY = 200  # characters; keys are kept, logged and written into checkpoints


class ClientKeys:
    """The client keys of a run, by node."""

    def __init__(self) -> None:
        self._by_node: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._by_node)

    def key(self, node: int) -> str:
        """What identifies the client on a node; its node id while nothing better is known."""
        return self._by_node.get(node, str(node))

    def order(self, node: int) -> tuple[int, int, str]:
        """Where a node comes by its client key: numbers first, then names."""
        key = self.key(node)
        return (0, int(key), key) if key.isascii() and key.isdigit() else (1, 0, key)

    def in_order(self, nodes: Iterable[int]) -> list[int]:
        """Nodes in the order of their client keys."""
        return sorted(nodes, key=self.order)

    def unknown(self, nodes: Iterable[int]) -> list[int]:
        """The nodes without a key, in the order of their ids."""
        return sorted(node for node in nodes if node not in self._by_node)

    def take(self, node: int, key: str, online: set[int]) -> None:
        """Give a node the key that its client calls itself by.

        If another node that is online has it, the newcomer goes by its node id; a node that is
        gone loses it: the client is back under a new node id. Control characters are written out:
        keys are logged.
        """
        key = reading.plain(key, LONGEST_KEY)
        for other in [other for other, taken in self._by_node.items() if taken == key]:
            if other in online:
                log(WARNING, "Nodes %s and %s both call themselves client %s.", other, node, key)
                self._by_node[node] = str(node)
                return
            del self._by_node[other]
        self._by_node[node] = key
