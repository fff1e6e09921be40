"""How wide each client is, as the strategy was told and as clients say themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from logging import INFO, WARNING

from flwr.supercore import log

from fedma_flwr import reading


class ClientWidths:
    """The ratio of each client's widths to the model's; 1 where nobody says otherwise.

    Parameters
    ----------
    given : mapping of str to float
        By client key, of the argument `client_widths`: it wins over what clients say.
    """

    def __init__(self, given: Mapping[str, float]) -> None:
        self.given = dict(given)
        self._told: dict[int, float] = {}
        self._warned = False

    @property
    def any_narrow(self) -> bool:
        """Whether any client is known to be narrow."""
        return any(ratio < 1.0 for ratio in (*self.given.values(), *self._told.values()))

    def ratio(self, node: int, key: str) -> float:
        """The ratio of the client with this key, on this node."""
        return self.given.get(key, self._told.get(node, 1.0))

    def told(self, node: int, ratio: float) -> None:
        """Take note of what a client says of itself, in its hello or in any other reply."""
        before = self._told.get(node)
        if before is not None and before != ratio:
            log(
                INFO,
                "Node %s says it is %g times as wide as the model, not %g.",
                node,
                ratio,
                before,
            )
        self._told[node] = ratio

    def check_keys(self, keys: Iterable[str]) -> None:
        """Warn, once, of keys in `client_widths` that no client has."""
        known = set(keys)
        unknown = [key for key in self.given if key not in known]
        if unknown and not self._warned:
            self._warned = True
            log(
                WARNING,
                "client_widths names clients that are not there: %s; those that are there call "
                "themselves %s.",
                reading.plain(str(unknown[:5])),
                reading.plain(str(sorted(known)[:5])),
            )
