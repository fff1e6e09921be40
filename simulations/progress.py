"""What a run has done so far, read from the files that its ServerApp writes while it works."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

EXCHANGES = "exchanges.jsonl"
RESULT = "result.json"
MEGABYTE = 1e6


def exchanges(folder: Path) -> list[dict[str, Any]]:
    """Return the exchanges of a run so far, the small hello to new clients left out."""
    path = folder / EXCHANGES
    if not path.is_file():
        return []
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")  # the last may be half-written
    records = [json.loads(line) for line in whole.splitlines()]
    return [record for record in records if record["name"] != "hello"]


def rounds(folder: Path) -> list[dict[str, Any]]:
    """Return the complete rounds of a run so far."""
    path = folder / RESULT
    if not path.is_file():
        return []
    done: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rounds"]
    return done


class Display:
    """Shows how far some runs are: bars in a terminal, else a line for each round.

    Parameters
    ----------
    totals : Mapping
        Number of rounds of each run, by name.
    console : Console
        Where to show it.
    """

    def __init__(self, totals: Mapping[str, int], console: Console) -> None:
        self._totals = totals
        self._console = console
        self._told = dict.fromkeys(totals, 0)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description:8}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("rounds  {task.fields[state]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._bars: dict[str, TaskID] = {
            name: self._progress.add_task(name, total=total, start=False, state="waiting")
            for name, total in totals.items()
        }

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def start(self, name: str) -> None:
        """Say that a run has begun."""
        self._progress.start_task(self._bars[name])
        self._progress.update(self._bars[name], state="starting Flower")
        self._tell(f"{name}: starting Flower")

    def update(self, name: str, folder: Path) -> None:
        """Show what a run has done so far.

        Parameters
        ----------
        name : str
            The run.
        folder : Path
            Its output folder.
        """
        done, made = rounds(folder), exchanges(folder)
        self._progress.update(self._bars[name], completed=len(done), state=_state(done, made))
        for entry in done[self._told[name] :]:
            self._tell(f"{name}: {round_line(entry, self._totals[name])}")
        self._told[name] = len(done)

    def finish(self, name: str) -> None:
        """Say that a run is over."""
        self._progress.stop_task(self._bars[name])

    def _tell(self, line: str) -> None:
        if not self._console.is_terminal:
            self._console.print(line, highlight=False, soft_wrap=True)


def round_line(entry: Mapping[str, Any], total: int) -> str:
    """Return what a round did, as a line.

    Parameters
    ----------
    entry : Mapping
        One of a result's `rounds`.
    total : int
        Number of rounds of the run.

    Returns
    -------
    str
        Round, accuracy, bytes so far and seconds so far.
    """
    moved = (entry["bytes_up"] + entry["bytes_down"]) / MEGABYTE
    return (
        f"round {entry['round']}/{total}  accuracy {entry['accuracy']:.3f}  "
        f"{moved:.1f} MB  {entry['exchanges']} exchanges  {entry['seconds']:.0f} s"
    )


def _state(done: list[dict[str, Any]], made: list[dict[str, Any]]) -> str:
    accuracy = f"accuracy {done[-1]['accuracy']:.3f}" if done else ""
    if not made:
        return "starting Flower"
    last = made[-1]
    stage = f"{accuracy}  after stage {last['stage'] + 1}/{last['stages']} ({last['name']})".strip()
    moved = sum(entry.get("bytes_up", 0) + entry.get("bytes_down", 0) for entry in made) / MEGABYTE
    clients = f"{last['answered']} of {last['cohort']} clients, " if last.get("cohort") else ""
    return f"{stage}  {clients}{moved:.1f} MB" if moved else stage
