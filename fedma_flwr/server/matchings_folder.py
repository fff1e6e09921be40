"""A folder of matchings: a run saves what its matcher found, a later one need not match again.

One JSON file a communication round, with every client's assignment of every group. Files are
checked in full before they are used; where they do not fit, the run stops and says which file
must go.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from logging import WARNING
from pathlib import Path
from typing import Any

from flwr.supercore import log

from fedma_flwr.matching import SavedMatching
from fedma_flwr.server.folders import as_folder
from fedma_flwr.server.group_matching import GroupMatching, read_group
from fedma_flwr.server.whole_files import written_whole

FORMAT = 1
_KEYS = {"format", "round", "groups"}
_DIGEST = re.compile(r', "sha256": "([0-9a-f]{64})"\}\n?\Z')
_NAMED = 5  # clients in an error, at most


RoundMatching = dict[str, GroupMatching]  # by group


class MatchingsFolder:
    """The saved matchings of one run.

    Parameters
    ----------
    path : Path
        Made when a run starts; holds ``round-<number>.json``. A leading ``~`` is a home.
    max_widths : mapping of str to int
        The model's groups, and the most units that each may have.
    """

    def __init__(self, path: Path, max_widths: Mapping[str, int]) -> None:
        self.path = as_folder("matchings", path)
        self.max_widths = dict(max_widths)
        self.begun = False  # whether this run has matched, or used, a round already

    def lacks(self, num_rounds: int) -> bool:
        """Whether a run of so many rounds finds one without a file, and will write it."""
        return not all(self.file(number).exists() for number in range(1, num_rounds + 1))

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
                **({} if group.last is None else {"last": group.last.tolist()}),
            }
            for name, group in matching.items()
        }
        text = json.dumps({"format": FORMAT, "round": number, "groups": groups})
        text = f'{text[:-1]}, "sha256": "{_digest(text)}"}}\n'
        with written_whole(self.file(number)) as partial:
            partial.write_text(text, encoding="utf-8")

    def check(self, rounds: Iterable[int]) -> None:
        """Read the files of these rounds, if they are there.

        Raises
        ------
        ValueError
            As `read`.
        """
        self.begun = False
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
        try:
            text = self.file(number).read_text(encoding="utf-8")
            content = json.loads(text)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, ValueError, RecursionError) as error:
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
        found = {name: self._group(number, name, groups[name], clients) for name in groups}
        if set(content) != _KEYS and not _is_intact(text):  # earlier versions wrote no digest
            raise self._refuse(
                number, "it is damaged: it does not have the digest that it states (sha256)"
            )
        return found

    def check_clients(self, rounds: Iterable[int], keys: Iterable[str]) -> None:
        """Refuse rounds that were matched for clients whose keys nobody has now.

        Raises
        ------
        ValueError
            Names the file and the keys.
        """
        known = set(keys)
        for number, name, group in [(n, *g) for n in rounds for g in self.read(n).items()]:
            if gone := [key for key in group.assignments if key not in known]:
                raise self._refuse(
                    number,
                    f"it is of clients {_some(group.assignments)}, this round's are {_some(known)}:"
                    f" nobody is connected with the client keys {_some(gone)}",
                    name,
                )

    def _group(
        self, number: int, name: str, content: Any, clients: Sequence[str] | None
    ) -> GroupMatching:
        try:
            group = read_group(content)
        except (KeyError, TypeError, ValueError) as error:
            raise self._refuse(number, str(error), name) from error
        if group.width > self.max_widths[name]:
            raise self._refuse(
                number, f"it has {group.width} units, at most {self.max_widths[name]} may be", name
            )
        if clients is not None and set(group.assignments) != set(clients):
            raise self._refuse(
                number,
                f"it is of clients {_some(group.assignments)}, this round's are {_some(clients)}",
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
        If the saved matching is not of this model and these clients, in the run's first round.
        A later one is matched anew then, with a warning.
    """

    def __init__(self, folder: MatchingsFolder | None, number: int, clients: Sequence[str]) -> None:
        self._folder = folder
        self._number = number
        self._groups: RoundMatching = {}
        self._saves = folder is not None
        self._first = folder is None or not folder.begun
        if folder is None:
            return
        try:
            self._groups = folder.read(number, clients)
        except ValueError as error:
            if self._first:
                raise
            self._saves = False  # one client that comes or goes must not end the run
            log(WARNING, "Round %s is matched anew, and not saved. %s", number, error)
        folder.begun = True

    def matchers(
        self,
        groups: Iterable[str],
        clients: Sequence[str],
        widths: Sequence[Mapping[str, int]],
        last: Mapping[str, int] | None = None,
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
        last : mapping of str to int, optional
            The last global model's, if it takes part in the matching.

        Raises
        ------
        ValueError
            If a client has another number of units than was saved.
        """
        found = {}
        for name in groups:
            if self._folder is None or name not in self._groups:
                continue
            matcher = self._groups[name].matcher(clients)
            own = [each[name] for each in (*widths, *([last] if last else []))]
            try:
                self._folder.check_widths(self._number, name, matcher, own)
                found[name] = matcher
            except ValueError as error:
                if self._first:
                    raise
                log(WARNING, "Round %s, %s is matched anew. %s", self._number, name, error)
        return found

    def save(self, matching: RoundMatching) -> None:
        """Save what was found anew, if there is a folder for it."""
        if self._folder is None or not self._saves or self._groups:
            return
        try:
            self._folder.save(self._number, matching)
        except OSError as error:
            log(
                WARNING,
                "Round %s: its matching was not saved to %s (%s). The run goes on without it.",
                self._number,
                self._folder.path,
                error,
            )


def _some(keys: Iterable[str]) -> str:
    """Client keys for an error: a few of them, if they are many."""
    names = sorted(keys)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{names[:_NAMED]}{more}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _is_intact(text: str) -> bool:
    """Whether a file's text has the digest that ends it."""
    end = _DIGEST.search(text)
    return end is not None and _digest(f"{text[: end.start()]}}}") == end[1]
