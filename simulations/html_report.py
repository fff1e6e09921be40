"""The page that the demo and the experiments leave: a failure to make it is said, and no more."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from fedma_flwr.report import Run, make_page, write_report
from simulations.methods import LABELS
from simulations.summary import Row

REPORT = "report.html"


def report_of_folders(folders: Sequence[Path], path: Path) -> bool:
    """Make the report of runs whose records are in some folders; whether it is there."""
    try:
        write_report(folders, path)
    except Exception as error:  # a picture is not worth a run's results
        print(f"{path.name} was not written: {error}", file=sys.stderr)
        return False
    return True


def report_of_rows(title: str, rows: Sequence[Row], path: Path) -> bool:
    """Make the report of an experiment's rows, one curve a run; whether it is there."""
    try:
        path.write_text(make_page(_runs(rows), title), encoding="utf-8")
    except Exception as error:  # as above
        print(f"{path.name} was not written: {error}", file=sys.stderr)
        return False
    return True


def _runs(rows: Sequence[Row]) -> list[Run]:
    runs: dict[str, list[Row]] = {}
    for row in rows:
        runs.setdefault(row["run"], []).append(row)
    return [Run(_name(own[0]), [_entry(row) for row in own]) for own in runs.values()]


def _name(row: Row) -> str:
    return f"{row['setting']} {LABELS[row['method']]}, seed {row['seed']}".strip()


def _entry(row: Row) -> Row:
    """A row as an entry of a run's rounds: `rounds` would say how many there are."""
    return {key: value for key, value in row.items() if key not in ("config", "rounds")}
