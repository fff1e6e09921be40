"""From records to one file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedma_flwr.report.curves import curves, figure, megabytes
from fedma_flwr.report.file_names import REPORT
from fedma_flwr.report.head_scores import head_scores
from fedma_flwr.report.page import table, text, tiles, whole
from fedma_flwr.report.participation import participation
from fedma_flwr.report.plan import plan
from fedma_flwr.report.records import ReportError, Run, runs_in
from fedma_flwr.report.units import units

_MOST_RUNS = 12  # that are told one by one


def write_report(folders: Sequence[Path | str], output: Path | str | None = None) -> Path:
    """Make a report of the runs in some folders.

    Parameters
    ----------
    folders : sequence of Path
        Output folders of runs, or folders of such folders.
    output : Path, optional
        The file. None: ``report.html`` in the first folder.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ReportError
        If there are no records, they cannot be read, or the file cannot be written.
    ImportError
        If there is no matplotlib.
    """
    paths = [Path(folder) for folder in folders]
    path = paths[0] / REPORT if output is None else Path(output)
    page = make_page(runs_in(paths))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=".report", suffix=".partial")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(page)
            Path(partial).chmod(0o644)
            Path(partial).replace(path)
        finally:
            Path(partial).unlink(missing_ok=True)
    except OSError as error:
        raise ReportError(f"{path} cannot be written ({error})") from error
    return path


def make_page(runs: Sequence[Run], title: str = "") -> str:
    """The report as one HTML file.

    Parameters
    ----------
    runs : sequence of Run
        At least one.
    title : str
        Empty: made from the runs' names.
    """
    names = ", ".join(run.name for run in runs[:4]) + ", …" * (len(runs) > 4)
    title = title or f"Report: {names}"
    told = [run for run in runs if run.exchanges][:_MOST_RUNS]
    links = "".join(
        f'<a href="#run-{place}">{text(run.name, 60)}</a>' for place, run in enumerate(told)
    )
    parts = [
        f"<h1>{text(title)}</h1>",
        _summary(runs),
        f"<nav>{links}</nav>" if len(told) > 1 else "",
        "<h2>Curves</h2>",
        curves(runs),
        *(_run(run, place) for place, run in enumerate(told)),
        "<footer class=soft>Made by <code>python -m fedma_flwr.report</code> from the records of "
        "the runs. Nothing in this page is loaded from elsewhere.</footer>",
    ]
    return whole(title, "\n".join(parts))


def _summary(runs: Sequence[Run]) -> str:
    """The figures of a single run."""
    if len(runs) > 1 or not runs[0].rounds:
        return ""
    run, last = runs[0], runs[0].rounds[-1]
    accuracy, loss = run.curve("accuracy")[-1], run.curve("loss")[-1]
    shown = [("accuracy", figure(accuracy)), ("loss", figure(loss))]
    both = last.get("bytes_up", 0) + last.get("bytes_down", 0)
    return tiles(
        [
            *[pair for pair in shown if pair[1] != "-"],
            ("rounds", str(len(run.rounds))),
            ("megabytes", megabytes(both)),
            ("exchanges", f"{last.get('exchanges', 0):.0f}"),
            ("local epochs", f"{last.get('client_epochs', 0):.0f}"),
            ("seconds", f"{last.get('seconds', 0):.0f}"),
        ]
    )


def _run(run: Run, place: int) -> str:
    """All that is known of one run beside its curves."""
    parts = [plan(run), participation(run), units(run), head_scores(run), _settings(run)]
    inner = "\n".join(part for part in parts if part)
    return f'<section id="run-{place}"><h2>{text(run.name, 60)}</h2>{inner}</section>'


def _settings(run: Run) -> str:
    """Settings, the app's config, and versions, folded."""
    tables = {
        "Settings": run.settings.get("settings", {}),
        "Config of the app": run.about.get("config", {}),
        "Versions": run.settings.get("versions", {}),
    }
    made = [
        f"<details><summary>{name}</summary>{_pairs(values)}</details>"
        for name, values in tables.items()
        if isinstance(values, dict) and values
    ]
    return "\n".join(["<h3>Settings and versions</h3>", *made]) if made else ""


def _pairs(values: Mapping[str, Any]) -> str:
    return table(["name", "value"], [(key, str(value)) for key, value in values.items()], False)
