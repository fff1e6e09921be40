"""How one group was matched in one round, as it is saved."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedma_flwr.matching import Matching, SavedMatching
from fedma_flwr.matching.arrays import Integers
from fedma_flwr.matching.checking import check_assignments


@dataclass(frozen=True, eq=False)
class GroupMatching:
    """How one group was matched in one round.

    Parameters
    ----------
    assignments : dict of str to int array, shapes (L_j,)
        Local unit -> global unit, by client key, in the order of the keys.
    objective : float
        The matcher's.
    sweeps : int
        Sweeps that it took.
    last : int array, shape (L,), optional
        The same of the last global model's units, if it has taken part.
    """

    assignments: dict[str, Integers]
    objective: float
    sweeps: int
    last: Integers | None = None

    @classmethod
    def of(
        cls, clients: Sequence[str], matching: Matching, last: Integers | None = None
    ) -> GroupMatching:
        """What a matcher has found for the given clients, in their order."""
        found = dict(zip(clients, matching.assignments, strict=True))
        return cls(found, float(matching.objective), matching.sweeps, last)

    @property
    def width(self) -> int:
        """The number of global units."""
        return 1 + max(int(assignment.max()) for assignment in self._all())

    @property
    def popularity(self) -> Tensor:
        """(L,) how many clients hold each global unit."""
        units = np.concatenate(list(self.assignments.values()))
        return torch.from_numpy(np.bincount(units, minlength=self.width))

    def _all(self, clients: Iterable[str] | None = None) -> list[Integers]:
        """The assignments of the given clients, or of all, and behind them the last model's."""
        chosen = self.assignments if clients is None else clients
        last = [] if self.last is None else [self.last]
        return [*(self.assignments[client] for client in chosen), *last]

    def matcher(self, clients: Sequence[str]) -> SavedMatching:
        """What gives these assignments to the given clients, in their order.

        Units that only other clients have close up; the objective is then found anew.
        """
        if set(clients) == set(self.assignments):
            return SavedMatching(tuple(self._all(clients)), self.objective, self.sweeps)
        chosen = self._all(clients)
        _, units = np.unique(np.concatenate(chosen), return_inverse=True)
        ends = np.cumsum([len(assignment) for assignment in chosen])[:-1]
        return SavedMatching(tuple(np.split(units.astype(np.int64), ends)))


def read_group(content: Any) -> GroupMatching:
    """A group's matching from JSON.

    Raises
    ------
    KeyError, TypeError, ValueError
        If it is none.
    """
    clients = content["clients"]
    objective, sweeps = content["objective"], content["sweeps"]
    if not isinstance(clients, dict) or not clients:
        raise ValueError("it has no clients")
    if type(objective) not in {int, float} or type(sweeps) is not int:
        raise ValueError(f"objective {objective!r} and sweeps {sweeps!r} are not both numbers")
    for key, units in clients.items():
        if not isinstance(units, list) or not all(type(unit) is int for unit in units):
            raise ValueError(f"client {key!r} has no list of whole numbers")
    last = content.get("last")
    if last is not None and (not isinstance(last, list) or any(type(n) is not int for n in last)):
        raise ValueError("its last model has no list of whole numbers")
    assignments = {key: np.array(units, dtype=np.int64) for key, units in clients.items()}
    before = None if last is None else np.array(last, dtype=np.int64)
    found = GroupMatching(assignments, float(objective), sweeps, before)
    check_assignments(found._all())
    return found
