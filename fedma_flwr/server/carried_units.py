"""Where the units of clients outside a cohort have gone, when a round has given all a new number.

A client with personal tensors keeps them in its own units. It can only go on with them if the
units that it is sent are those that its own have become, also after rounds that it has missed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Units = Mapping[str, Tensor]


@dataclass(frozen=True)
class UnitCarrier:
    """The new global units of clients that have not taken part in a round.

    Parameters
    ----------
    known : mapping of str to mapping of str to Tensor
        By client key, its (n,) units of the last global model, by group.
    moves : sequence of (mapping, mapping)
        For every client that has taken part the units of the last global model that it began
        with, and the new units that they have become.
    popularity : mapping of str to Tensor
        (L,) how many clients hold each new unit, by group.
    """

    known: Mapping[str, Units]
    moves: Sequence[tuple[Units, Units]]
    popularity: Mapping[str, Tensor]

    def carry(self, key: str) -> dict[str, Tensor] | None:
        """The new units of a client, by group.

        That is where most clients that held a unit now have it. Units that nobody held, or that
        have become one with another of the client's, are replaced by the most popular ones that it
        lacks. None if the client is wider than the new model.
        """
        carried = {}
        for group, held in self.popularity.items():
            moves = [(old[group], new[group]) for old, new in self.moves]
            found = _carry(self.known[key][group], moves, held)
            if found is None:
                return None
            carried[group] = found
        return carried

    def units_of_all(self, begun: Iterable[tuple[str, Units]]) -> dict[str, dict[str, Tensor]]:
        """The new units of all clients, whether they have seen the round's end or not, by key.

        Parameters
        ----------
        begun : iterable of (str, mapping of str to Tensor)
            Clients that were there at the beginning, and their new units as far as known.
        """
        groups = self.popularity.keys()
        found = {key: dict(units) for key, units in begun if units.keys() == groups}
        for key in self.known.keys() - found.keys():
            if (carried := self.carry(key)) is not None:
                found[key] = carried
        return found


def _carry(units: Tensor, moves: Iterable[tuple[Tensor, Tensor]], held: Tensor) -> Tensor | None:
    if len(units) > len(held):
        return None
    votes = torch.zeros(int(units.max()) + 1, len(held), dtype=torch.int64)
    for old, new in moves:
        known = old < len(votes)
        votes.index_put_((old[known], new[known]), torch.tensor(1), accumulate=True)
    most, target = votes[units].max(dim=1)
    taken: set[int] = set()
    result = torch.full_like(units, -1)
    for place in torch.argsort(most, descending=True, stable=True).tolist():
        if int(most[place]) and int(target[place]) not in taken:
            result[place] = target[place]
            taken.add(int(target[place]))
    popular = torch.argsort(held, descending=True, stable=True).tolist()
    spare = (unit for unit in popular if unit not in taken)
    for place in (result < 0).nonzero().flatten().tolist():
        result[place] = next(spare)
    return result
