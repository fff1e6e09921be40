"""Which client is on which node: its key, and the order that keys give."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from logging import WARNING

from flwr.serverapp import Grid
from flwr.supercore import log

from fedma_flwr import reading

LONGEST_KEY = 200  # characters; keys are kept, logged and written into checkpoints
NO_PUBLIC_KEYS: Mapping[int, bytes] = {}


def public_keys(grid: Grid) -> dict[int, bytes]:
    """The public key of each node, as far as a grid tells; Flower's do since 1.41."""
    try:
        return {node.node_id: node.public_key for node in grid.get_nodes() if node.public_key}
    except (AttributeError, NotImplementedError):  # a grid of one's own
        return {}


class ClientKeys:
    """The client keys of a run, by node. No two nodes ever have the same.

    Parameters
    ----------
    registered : bool (default: False)
        Whether every node is registered with its public key: then a client key stays with the one
        that was first seen with it, also while that node is gone.
    """

    def __init__(self, *, registered: bool = False) -> None:
        self.registered = registered
        self._by_node: dict[int, str] = {}
        self._stand_ins: dict[int, str] = {}  # of nodes that have told no key
        self._first: dict[str, tuple[int, bytes]] = {}  # who was first: its node, its public key

    def __len__(self) -> int:
        return len(self._by_node)

    def key(self, node: int) -> str:
        """What identifies the client on a node; its node id while nothing better is known."""
        if node in self._by_node:
            return self._by_node[node]
        if node not in self._stand_ins:
            self._stand_ins[node] = self._stand_in(node)
        return self._stand_ins[node]

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

    def take(
        self,
        node: int,
        key: str,
        online: set[int],
        known: Mapping[int, bytes] = NO_PUBLIC_KEYS,
    ) -> None:
        """Give a node the key that its client calls itself by, unless it is another's.

        Whoever was first seen with a key keeps it, as long as it is online, and gets it back when
        it returns. While it is gone, a newcomer may have it: a client that was started anew has a
        new node id. With registered nodes only one of the same public key may. Whom a key is
        refused goes by its node id. Control characters are written out: keys are logged.

        Parameters
        ----------
        node : int
            The node.
        key : str
            What its client says.
        online : set of int
            The nodes that are there.
        known : mapping of int to bytes (default: none)
            Their public keys, of which no two nodes have the same at a time.
        """
        key, public = reading.plain(key, LONGEST_KEY), known.get(node, b"")
        if self._is_anothers(node, key, online, public):
            self._by_node[node] = self._stand_in(node)
            return
        self._first.setdefault(key, (node, public))
        for other in [other for other, taken in self._by_node.items() if taken == key]:
            del self._by_node[other]
            if other in online and other != node:
                self._by_node[other] = self._stand_in(other)
        self._stand_ins.pop(node, None)
        self._by_node[node] = key

    def _is_anothers(self, node: int, key: str, online: set[int], public: bytes) -> bool:
        first, its_public = self._first.get(key, (None, b""))
        if node == first or (public and public == its_public):
            return False  # it was the first, whoever has it now
        holders = {other for other, taken in self._by_node.items() if taken == key}
        holders |= {other for other, taken in self._stand_ins.items() if taken == key}
        for other in (holders & online) - {node}:
            log(WARNING, "Nodes %s and %s both call themselves client %s.", other, node, key)
            return True
        if self.registered and first is not None:
            log(WARNING, "Node %s calls itself client %s, as node %s does.", node, key, first)
            return True
        return False

    def _stand_in(self, node: int) -> str:
        """The node's id, or a longer name if a client calls itself that."""
        others = {key for other, key in self._by_node.items() if other != node}
        others |= {key for other, key in self._stand_ins.items() if other != node}
        name = str(node)
        while name in others | (self._first.keys() if self.registered else set()):
            name = f"node-{name}"
        return name
