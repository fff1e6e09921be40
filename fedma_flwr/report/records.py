"""What a run has left in its folder, read and checked.

Whatever came from a client is still text of its own choosing here: `page.text` makes it harmless.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedma_flwr.report.file_names import EXCHANGES, RESULT, SETTINGS

HELLO, HEAD = "hello", "head"
_NUMBER, _WHOLE = (int, float), (int,)
_NEEDED: dict[str, tuple[type, ...]] = {"round": _WHOLE, "stage": _WHOLE, "name": (str,)}
_KINDS: dict[str, tuple[type, ...]] = {
    **_NEEDED,
    **dict.fromkeys(("stages", "cohort", "answered"), _WHOLE),
    **dict.fromkeys(
        ("bytes_up", "bytes_down", "epochs", "seconds_waiting", "seconds_matching", "growth"),
        _NUMBER,
    ),
    **dict.fromkeys(("groups", "took_part", "resent"), (list,)),
    **dict.fromkeys(
        ("dropped", "widths", "popularity", "similarity", "filters", "head_scores"), (dict,)
    ),
}
_WHERE = ("server", "clients", "training")  # in the order in which a figure is looked for


class ReportError(ValueError):
    """The records cannot be read, or there are none."""


@dataclass(frozen=True)
class Run:
    """The records of one run.

    Parameters
    ----------
    name : str
        What it is called in the report.
    rounds : sequence of dict
        Entries of ``result.json``; counters are cumulative.
    exchanges : sequence of dict
        Lines of ``exchanges.jsonl``.
    settings : mapping
        ``settings.json``; empty if there is none.
    about : mapping
        What ``result.json`` says beside the rounds.
    """

    name: str
    rounds: Sequence[Mapping[str, Any]] = ()
    exchanges: Sequence[Mapping[str, Any]] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stages(self) -> list[Mapping[str, Any]]:
        """The exchanges without the hellos."""
        return [entry for entry in self.exchanges if entry["name"] != HELLO]

    def curve(self, word: str) -> list[float]:
        """A figure after each round, NaN where it was not measured.

        Parameters
        ----------
        word : str
            ``"accuracy"`` or ``"loss"``: by that name, or the first one that has its first three
            letters; of the server, the clients' evaluation, or training, in this order.
        """
        return [_figure(entry, word) for entry in self.rounds]

    def costs(self, key: str) -> list[float]:
        """A cumulative counter after each round; 0 where it is not there."""
        return [float(entry.get(key, 0.0)) for entry in self.rounds]


def _figure(entry: Mapping[str, Any], word: str) -> float:
    if _is_number(entry.get(word)):
        return float(entry[word])
    metrics = entry.get("metrics", {})
    for place in _WHERE:
        found = metrics.get(place, {}) if isinstance(metrics, dict) else {}
        names = [name for name in found if word[:3] in name.lower() and _is_number(found[name])]
        if names:
            return float(found[word if word in names else names[0]])
    return math.nan


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def runs_in(folders: Sequence[Path]) -> list[Run]:
    """The runs of some folders, and of the folders in these.

    Raises
    ------
    ReportError
        If a folder has no records, or if they cannot be read; it names the file.
    """
    found: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise ReportError(f"{folder} is no folder")
        inner = [path for path in sorted(folder.iterdir()) if path.is_dir() and _has_records(path)]
        own = [folder] if _has_records(folder) else inner
        if not own:
            raise ReportError(
                f"{folder} has no records of a run ({RESULT}, {EXCHANGES}). They are written by "
                'FedMA(output_dir="..."), and by the shipped app with the config key output-dir.'
            )
        found += own
    names = _names(found)
    return [read_run(path, name) for path, name in zip(found, names, strict=True)]


def _has_records(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (RESULT, EXCHANGES))


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' own names; with those of the folders they are in where that is not enough."""
    short = [path.resolve().name for path in folders]
    long = ["/".join(path.resolve().parts[-2:]) for path in folders]
    names = short if len(set(short)) == len(short) else long
    return [n if names.count(n) == 1 else f"{n} ({i})" for i, n in enumerate(names, start=1)]


def read_run(folder: Path, name: str = "") -> Run:
    """Read the records of one run.

    Parameters
    ----------
    folder : Path
        Its output folder.
    name : str
        What it is called in the report; empty: as its folder.

    Raises
    ------
    ReportError
        If they cannot be read; it names the file and what is wrong in it.
    """
    result = _read_object(folder / RESULT)
    rounds = result.pop("rounds", [])
    if not isinstance(rounds, list) or not all(isinstance(entry, dict) for entry in rounds):
        raise ReportError(f"{folder / RESULT}: 'rounds' must be a list of objects")
    for place, entry in enumerate(rounds, start=1):
        where = f"{folder / RESULT}, round {place} of the list"
        _check(entry, {"round": _WHOLE, "widths": (dict,)}, {"round"}, where)
        counters = ("bytes_up", "bytes_down", "exchanges", "client_epochs", "seconds", "growth")
        _check(entry, dict.fromkeys(counters, _NUMBER), set(), where)
    return Run(
        name or folder.resolve().name,
        rounds,
        _read_exchanges(folder / EXCHANGES),
        _read_object(folder / SETTINGS),
        result,
    )


def _read_object(path: Path) -> dict[str, Any]:
    """A file's JSON object; empty if there is no file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ReportError(f"{path} cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise ReportError(f"{path} is no JSON object")
    return content


def _read_exchanges(path: Path) -> list[dict[str, Any]]:
    """The lines of a file; a last one without an end was cut short, and is left out."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise ReportError(f"{path} cannot be read ({error})") from error
    found = []
    for number, line in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ReportError(f"{where} is no JSON ({error})") from error
        if not isinstance(entry, dict):
            raise ReportError(f"{where} is no JSON object")
        _check(entry, _KINDS, _NEEDED.keys(), where)
        found.append(entry)
    return found


def _check(
    entry: Mapping[str, Any],
    kinds: Mapping[str, tuple[type, ...]],
    needed: Any,
    where: str,
) -> None:
    for key, kind in kinds.items():
        if key not in entry and key not in needed:
            continue
        value = entry.get(key)
        finite = not isinstance(value, float) or math.isfinite(value)
        if not isinstance(value, kind) or isinstance(value, bool) or not finite:
            words = " or ".join(each.__name__ for each in kind)
            raise ReportError(f"{where}: {key!r} must be {words}, not {value!r:.60}")
