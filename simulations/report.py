"""The results of comparable runs: one file, one table, one picture."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from simulations.progress import MEGABYTE

Run = Mapping[str, Any]

RUN_KEYS = {"strategy", "task", "seed", "config", "rounds"}
ROUND_KEYS = {
    "round",
    "given-up",
    "accuracy",
    "loss",
    "bytes_up",
    "bytes_down",
    "exchanges",
    "client_epochs",
    "seconds",
    "widths",
    "growth",
}
NAMES = {
    "fedma": "FedMA",
    "fedavg": "FedAvg",
    "fedprox": "FedProx",
    "own": "FedMA, own weights",
    "own-unmatched": "own weights, not matched",
}
STYLES = {  # colours that colour-blind readers can tell apart, and markers for print
    "fedma": {"color": "#0072B2", "marker": "o", "linewidth": 2.4, "zorder": 3},
    "fedavg": {"color": "#D55E00", "marker": "s", "linewidth": 1.6},
    "fedprox": {"color": "#009E73", "marker": "^", "linewidth": 1.6},
    "own": {"color": "#56B4E9", "marker": "*", "linewidth": 0},
    "own-unmatched": {"color": "#CC79A7", "marker": "x", "linewidth": 0},
}
MILESTONES = 4
COLUMNS = ("round", "accuracy", "MB down", "MB up", "exchanges", "client\nepochs", "growth")


def read_run(path: Path) -> dict[str, Any]:
    """Return one run as its ServerApp wrote it.

    Parameters
    ----------
    path : Path
        The run's result.json.

    Returns
    -------
    dict
        An entry of `runs` of results.json.

    Raises
    ------
    ValueError
        If it has not exactly the keys of `RUN_KEYS` and `ROUND_KEYS`, or no round.
    """
    run: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    _check_keys(run, RUN_KEYS, str(path))
    if not run["rounds"]:
        raise ValueError(f"{path} has no rounds")
    for entry in run["rounds"]:
        _check_keys(entry, ROUND_KEYS, f"{path}: round {entry.get('round')}")
    return run


def write_results(runs: Sequence[Run], path: Path) -> None:
    """Write results.json: all runs, every counter cumulative over a run's rounds."""
    path.write_text(json.dumps({"runs": runs}, indent=1) + "\n", encoding="utf-8")


def table(runs: Sequence[Run]) -> Table:
    """Return the runs' accuracy and cost after some rounds, evenly spaced, and the last.

    It holds nothing that depends on the machine's speed: equal seeds give equal tables.

    Parameters
    ----------
    runs : sequence of Mapping
        Entries of `runs` of results.json.

    Returns
    -------
    Table
        Bytes in megabytes of 10^6; all counters from the start of the run.
    """
    result = Table(title=_title(runs[0]))
    result.add_column("strategy")
    for name in COLUMNS:
        result.add_column(name, justify="right", no_wrap=True)
    for run in runs:
        entries = _milestones(run["rounds"])
        for entry in entries:
            result.add_row(
                NAMES[_key(run)] if entry is entries[0] else "",
                *_cells(entry),
                end_section=entry is entries[-1],
            )
    return result


def plot(runs: Sequence[Run], path: Path) -> None:
    """Draw accuracy against bytes, exchanges and client epochs.

    Parameters
    ----------
    runs : sequence of Mapping
        Entries of `runs` of results.json.
    path : Path
        The picture, PNG.
    """
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    costs = {
        "bytes sent, both ways (MB)": lambda e: (e["bytes_up"] + e["bytes_down"]) / MEGABYTE,
        "exchanges with the clients": lambda e: e["exchanges"],
        "local epochs per client": lambda e: e["client_epochs"],
    }
    for panel, (label, cost) in zip(panels, costs.items(), strict=True):
        for run in runs:
            x = [cost(entry) for entry in run["rounds"]]
            y = [entry["accuracy"] for entry in run["rounds"]]
            name = _key(run)
            panel.plot(x, y, label=NAMES[name], markersize=6, clip_on=False, **STYLES[name])
        panel.set_xlabel(label)
        panel.set_xlim(left=0)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("test accuracy")
    panels[0].legend(loc="lower right", frameon=False)
    figure.suptitle(_title(runs[0]) + ": one marker a round")
    figure.savefig(path, dpi=150)


def _key(run: Run) -> str:
    """What a run is in `NAMES`: its strategy, or how clients with weights of their own are met."""
    config = run["config"]
    if config.get("initialisation") != "own":
        return str(run["strategy"])
    return "own-unmatched" if config["matcher"] == "identity" else "own"


def _check_keys(found: Mapping[str, Any], expected: set[str], where: str) -> None:
    if set(found) != expected:
        raise ValueError(
            f"{where}: missing keys {sorted(expected - set(found))}, "
            f"unknown keys {sorted(set(found) - expected)}"
        )


def _milestones(rounds: Sequence[Run]) -> list[Run]:
    step = math.ceil(len(rounds) / MILESTONES)
    return [entry for i, entry in enumerate(rounds, start=1) if i % step == 0 or i == len(rounds)]


def _cells(entry: Mapping[str, Any]) -> list[str]:
    return [
        str(entry["round"]),
        f"{entry['accuracy']:.3f}",
        f"{entry['bytes_down'] / MEGABYTE:.1f}",
        f"{entry['bytes_up'] / MEGABYTE:.1f}",
        str(entry["exchanges"]),
        f"{entry['client_epochs']:.0f}",
        f"{entry['growth']:.2f}",
    ]


def _title(run: Run) -> str:
    config = run["config"]
    split = f"{config['partition']} partition, alpha {config['alpha']}"
    return f"{run['task']}, {split}, seed {run['seed']}"
