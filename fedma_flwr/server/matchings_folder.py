"""A folder of matchings: a run saves what its matcher found, a later one need not match again.

One JSON file a communication round, with every client's assignment of every group. Files are
checked in full before they are used; where they do not fit, the run stops and says which file
must go.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedma_flwr.matching import Matching, SavedMatching
from fedma_flwr.matching.arrays import Integers
from fedma_flwr.matching.checking import check_assignments
from fedma_flwr.server.whole_files import written_whole

FORMAT = 1


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
    """

    assignments: dict[str, Integers]
    objective: float
    sweeps: int

    @classmethod
    def of(cls, clients: Sequence[str], matching: Matching) -> GroupMatching:
        """What a matcher has found for the given clients, in their order."""
        found = dict(zip(clients, matching.assignments, strict=True))
        return cls(found, float(matching.objective), matching.sweeps)

    @property
    def width(self) -> int:
        """The number of global units."""
        return 1 + max(int(assignment.max()) for assignment in self.assignments.values())

    @property
    def popularity(self) -> Tensor:
        """(L,) how many clients hold each global unit."""
        held = np.bincount(np.concatenate(list(self.assignments.values())))
        return torch.from_numpy(held)

    def matcher(self, clients: Sequence[str]) -> SavedMatching:
        """What gives these assignments to the given clients, in their order.

        Units that only other clients have close up; the objective is then found anew.
        """
        if set(clients) == set(self.assignments):
            own = tuple(self.assignments[client] for client in clients)
            return SavedMatching(own, self.objective, self.sweeps)
        chosen = [self.assignments[client] for client in clients]
        _, units = np.unique(np.concatenate(chosen), return_inverse=True)
        ends = np.cumsum([len(assignment) for assignment in chosen])[:-1]
        return SavedMatching(tuple(np.split(units.astype(np.int64), ends)))


RoundMatching = dict[str, GroupMatching]  # by group


class MatchingsFolder:
    """The saved matchings of one run.

    Parameters
    ----------
    path : Path
        Made with the first file; holds ``round-<number>.json``.
    max_widths : mapping of str to int
        The model's groups, and the most units that each may have.
    """

    def __init__(self, path: Path, max_widths: Mapping[str, int]) -> None:
        self.path = path
        self.max_widths = dict(max_widths)

    def file(self, number: int) -> Path:
        """The file of a communication round."""
        return self.path / f"round-{number:06d}.json"

    def save(self, number: int, matching: Mapping[str, GroupMatching]) -> None:
        """Write a round's matching, so that a crash leaves a whole file or none."""
        groups = {
            name: {
                "objective": group.objective,
                "sweeps": group.sweeps,
                "clients": {key: units.tolist() for key, units in group.assignments.items()},
            }
            for name, group in matching.items()
        }
        text = json.dumps({"format": FORMAT, "round": number, "groups": groups})
        with written_whole(self.file(number)) as partial:
            partial.write_text(text + "\n", encoding="utf-8")

    def check(self, rounds: Iterable[int]) -> None:
        """Read the files of these rounds, if they are there.

        Raises
        ------
        ValueError
            As `read`.
        """
        for number in rounds:
            self.read(number)

    def read(self, number: int, clients: Sequence[str] | None = None) -> RoundMatching:
        """A round's matching; empty if there is no file of it.

        Parameters
        ----------
        number : int
            The communication round.
        clients : sequence of str, optional
            The keys of the clients that take part: each group's must be the same.

        Raises
        ------
        ValueError
            If the file is no matching, or not one of this model and these clients; names the
            file, the group and the remedy.
        """
        file = self.file(number)
        if not file.exists():
            return {}
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise self._refuse(number, f"it cannot be read ({error})") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise self._refuse(number, f"it is no saved matching of format {FORMAT}")
        groups = content.get("groups")
        if content.get("round") != number or not isinstance(groups, dict):
            raise self._refuse(number, f"it does not say what round {number} matched")
        if set(groups) != set(self.max_widths):
            raise self._refuse(
                number,
                f"its groups are {sorted(groups)}, the model's {sorted(self.max_widths)}",
            )
        return {name: self._group(number, name, groups[name], clients) for name in groups}

    def _group(
        self, number: int, name: str, content: Any, clients: Sequence[str] | None
    ) -> GroupMatching:
        try:
            group = _read_group(content)
        except (KeyError, TypeError, ValueError) as error:
            raise self._refuse(number, str(error), name) from error
        if group.width > self.max_widths[name]:
            raise self._refuse(
                number, f"it has {group.width} units, at most {self.max_widths[name]} may be", name
            )
        if clients is not None and set(group.assignments) != set(clients):
            raise self._refuse(
                number,
                f"it is of clients {sorted(group.assignments)}, this round's are {sorted(clients)}",
                name,
            )
        return group

    def check_widths(self, number: int, name: str, matcher: SavedMatching, own: list[int]) -> None:
        """Refuse assignments whose clients have other numbers of units.

        Raises
        ------
        ValueError
            Names the file, the group and the remedy.
        """
        saved = [len(assignment) for assignment in matcher.assignments]
        if saved != own:
            raise self._refuse(
                number, f"its clients have {saved} units, this round's have {own}", name
            )

    def _refuse(self, number: int, why: str, group: str = "") -> ValueError:
        where = f", group {group!r}" if group else ""
        return ValueError(
            f"matchings: {self.file(number)}{where}: {why}. Remove the file, or give another "
            "folder, and the round is matched anew and saved."
        )


class SavedRound:
    """A round's saved matching, if there is one; else where the one that is found is saved.

    Parameters
    ----------
    folder : MatchingsFolder or None
        None: nothing is saved, and nothing is taken.
    number : int
        The communication round.
    clients : sequence of str
        Keys of the clients that take part.

    Raises
    ------
    ValueError
        If the saved matching is not of this model and these clients.
    """

    def __init__(self, folder: MatchingsFolder | None, number: int, clients: Sequence[str]) -> None:
        self._folder = folder
        self._number = number
        self._groups = {} if folder is None else folder.read(number, clients)

    def matchers(
        self, groups: Iterable[str], clients: Sequence[str], widths: Sequence[Mapping[str, int]]
    ) -> dict[str, SavedMatching]:
        """What takes the matcher's place for these groups, for the clients that are left.

        Parameters
        ----------
        groups : iterable of str
            The groups of a stage.
        clients : sequence of J str
            Keys of the clients.
        widths : sequence of J mapping of str to int
            Each client's width of each group.

        Raises
        ------
        ValueError
            If a client has another number of units than was saved.
        """
        found = {}
        for name in groups:
            if self._folder is not None and name in self._groups:
                found[name] = self._groups[name].matcher(clients)
                own = [client[name] for client in widths]
                self._folder.check_widths(self._number, name, found[name], own)
        return found

    def save(self, matching: RoundMatching) -> None:
        """Save what was found anew, if there is a folder for it."""
        if self._folder is not None and not self._groups:
            self._folder.save(self._number, matching)


def _read_group(content: Any) -> GroupMatching:
    clients = content["clients"]
    objective, sweeps = content["objective"], content["sweeps"]
    if not isinstance(clients, dict) or not clients:
        raise ValueError("it has no clients")
    if type(objective) not in {int, float} or type(sweeps) is not int:
        raise ValueError(f"objective {objective!r} and sweeps {sweeps!r} are not both numbers")
    for key, units in clients.items():
        if not isinstance(units, list) or not all(type(unit) is int for unit in units):
            raise ValueError(f"client {key!r} has no list of whole numbers")
    assignments = {key: np.array(units, dtype=np.int64) for key, units in clients.items()}
    check_assignments(list(assignments.values()))
    return GroupMatching(assignments, float(objective), sweeps)
