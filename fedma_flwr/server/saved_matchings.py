"""A folder of matchings: a run saves what its matcher found, a later one need not match again.

One JSON file a communication round, with every client's assignment of every group. Files are
checked in full before they are used; where they do not fit, the run stops and says which file
must go.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedma_flwr.matching import Matcher, SavedMatching
from fedma_flwr.matching.result import Integers
from fedma_flwr.matching.saved import check_assignments

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

    @property
    def width(self) -> int:
        """The number of global units."""
        return 1 + max(int(assignment.max()) for assignment in self.assignments.values())

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
        self.path.mkdir(parents=True, exist_ok=True)
        groups = {
            name: {
                "objective": group.objective,
                "sweeps": group.sweeps,
                "clients": {key: units.tolist() for key, units in group.assignments.items()},
            }
            for name, group in matching.items()
        }
        text = json.dumps({"format": FORMAT, "round": number, "groups": groups})
        partial = self.file(number).with_suffix(".partial")
        partial.write_text(text + "\n", encoding="utf-8")
        os.replace(partial, self.file(number))

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


def open_folder(
    path: str | Path | None, matcher: Matcher, max_widths: Mapping[str, int]
) -> MatchingsFolder | None:
    """The folder that the user names, None for None.

    Raises
    ------
    ValueError
        If the matcher's output is the posterior: assignments do not tell the variances.
    """
    if path is None:
        return None
    output = getattr(matcher, "output", "mean")
    if output != "mean":
        raise ValueError(
            f"matchings was {str(path)!r} with a matcher whose output is {output!r}: a saved "
            'matching has no variances; make the matcher with output="mean".'
        )
    return MatchingsFolder(Path(path), max_widths)


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
