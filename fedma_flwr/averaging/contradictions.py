"""Clients whose moments say of most of their examples that they are another class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedma_flwr.averaging.client_update import ClientUpdate
from fedma_flwr.averaging.head_moments import sum_moments
from fedma_flwr.averaging.ridge_regression import whitened

#: Others know a class if they have this share of what they would have of equally large classes.
KNOWN = 0.25
#: The distances of a class's mean from others' mean of the same class, and of the class that it is
#: nearest to, differ by at most this share of their sum, on average over a client's examples.
MOST_CONTRARY = 1 / 3


@dataclass
class _Means:
    """Sums of each client's whitened head inputs by class.

    Parameters
    ----------
    sums : dict of int to Tensor
        (C, d), by node.
    counts : dict of int to Tensor
        (C,) examples of each class, by node.
    """

    sums: dict[int, Tensor]
    counts: dict[int, Tensor]

    def __post_init__(self) -> None:
        self.all_sums = torch.stack(list(self.sums.values())).sum(0)
        self.all_counts = torch.stack(list(self.counts.values())).sum(0)

    def contradiction(self, node: int) -> float:
        """How much nearer a client's classes are to others' other classes, 0 to 1.

        That is ``(right - nearest) / (right + nearest)`` of the squared distances of each class's
        mean, on average over the client's examples of classes that others know. In place of the
        nearest class's stands the usual distance between classes, where that is smaller.
        """
        counts = (self.all_counts - self.counts[node]).clamp_min(0.0)
        sums = self.all_sums - self.sums[node]
        known = (counts > KNOWN * counts.mean()) & (counts > 1e-6 * self.all_counts)
        own = self.counts[node] * known
        places = torch.nonzero(own > 0).flatten()
        if not len(places):
            return 0.0
        theirs = sums / counts.clamp_min(1e-30)[:, None]
        means = self.sums[node][places] / self.counts[node][places, None]
        right = ((means - theirs[places]) ** 2).sum(1)
        nearest = _squares(means, theirs[known]).amin(1).minimum(right)
        # Not further from its own class than other classes are, on average, either.
        others = int(known.sum()) - 1
        usual = _squares(theirs[places], theirs[known]).sum(1) / others if others else right
        wrong = torch.maximum(_excess(right, nearest), _excess(right, usual))
        return float((own[places] / own.sum() * wrong.clamp_min(0.0)).sum())

    def drop(self, node: int) -> None:
        """Go on without a client."""
        self.all_sums = self.all_sums - self.sums.pop(node)
        self.all_counts = self.all_counts - self.counts.pop(node)


def _squares(rows: Tensor, others: Tensor) -> Tensor:
    return torch.cdist(rows, others) ** 2


def _excess(larger: Tensor, smaller: Tensor) -> Tensor:
    return (larger - smaller) / (larger + smaller).clamp_min(1e-30)


def contrary_moments(updates: Mapping[int, ClientUpdate]) -> dict[int, str]:
    """Clients whose classes look like other clients' other classes, and the reason.

    Each client's mean of a class is compared with the means of all classes over all others, in the
    metric that the head is solved in. Only classes that others know are judged, so that a client
    which alone has a class is not refused. Whoever contradicts most is left out first, and the
    rest are compared anew: a hostile minority stands among the others as well. Where only two
    clients have a class, nobody can tell which of them is right. Targets that are values have no
    classes, and contradict nobody.

    Parameters
    ----------
    updates : mapping of int to ClientUpdate
        What the clients sent, by node, with weights and sizes within their bounds.
    """
    found: dict[int, str] = {}
    given = {n: u for n, u in updates.items() if u.moments and u.moments.squares is None}
    if len(given) < 2:
        return found
    means = _whitened_means(given)
    while 2 * (len(found) + 1) < len(given):  # a majority is never left out
        values = {node: means.contradiction(node) for node in means.counts}
        worst = max(values, key=lambda node: values[node])
        if values[worst] <= MOST_CONTRARY:
            break
        found[worst] = (
            "its moments contradict all others': its classes look like other classes by "
            f"{values[worst]:.2f} (0 to 1); at most {MOST_CONTRARY:.2f} is allowed with a robust "
            "`averaging`"
        )
        means.drop(worst)
    return found


def _whitened_means(updates: Mapping[int, ClientUpdate]) -> _Means:
    moments = [u.moments for u in updates.values() if u.moments is not None]
    total = sum_moments(moments, [update.examples for update in updates.values()])
    crosses = {
        node: u.moments.cross.to(torch.float64) * u.examples / u.moments.examples
        for node, u in updates.items()
        if u.moments is not None
    }
    # All at once: the system is factorised once.
    rows = whitened(total, torch.cat([cross[:, :-1] for cross in crosses.values()]))
    sums = dict(zip(crosses, rows.chunk(len(crosses)), strict=True))
    return _Means(sums, {node: cross[:, -1] for node, cross in crosses.items()})
