"""Tables and plots of an experiment's rows: means and standard deviations over the seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from simulations.methods import LABELS
from simulations.progress import MEGABYTE

Row = dict[str, Any]
Runs = list[list[Row]]  # one list of rounds a seed

STYLES: dict[str, dict[str, Any]] = {  # colours that colour-blind readers can tell apart
    "fedma": {"color": "#0072B2", "marker": "o", "zorder": 3},
    "fedma-bundled": {"color": "#56B4E9", "marker": "D", "zorder": 3},
    "fedma-paper": {"color": "#7B3294", "marker": "*", "zorder": 4},
    "fedavg": {"color": "#D55E00", "marker": "s"},
    "fedprox": {"color": "#009E73", "marker": "^"},
    "one-shot": {"color": "#CC79A7", "marker": "v"},
    "ensemble": {"color": "#E69F00", "marker": "P"},
    "centralised": {"color": "#000000", "marker": "x"},
    "untrained": {"color": "#999999", "marker": "+"},
}


def spent(row: Row) -> float:
    """Megabytes sent so far, both ways."""
    return float(row["bytes_up"] + row["bytes_down"]) / MEGABYTE


COSTS: dict[str, Callable[[Row], float]] = {
    "rounds": lambda row: row["round"],
    "exchanges": lambda row: row["exchanges"],
    "MB, both ways": spent,
    "client epochs": lambda row: row["client_epochs"],
}


def grouped(rows: Sequence[Row]) -> dict[tuple[str, str], Runs]:
    """Return the rows by setting and method, and in each one list of rounds a seed."""
    groups: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for row in rows:
        runs = groups.setdefault((row["setting"], row["method"]), {})
        runs.setdefault(row["run"], []).append(row)
    return {key: list(runs.values()) for key, runs in groups.items()}


def mean_std(values: Sequence[float], digits: int = 3) -> str:
    """Return "mean ± standard deviation"; of a single value the value alone."""
    if len(values) == 0:
        return "-"
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def markdown(title: str, rows: Sequence[Row], target: float | None = None) -> str:
    """Return the tables of an experiment.

    Parameters
    ----------
    title : str
        What the experiment shows.
    rows : sequence of dict
        Its rows.
    target : float, optional
        Accuracy whose cost is asked for, in a table of its own.

    Returns
    -------
    str
        Markdown: accuracy and cost at the end, accuracy round by round, and the cost of `target`.
    """
    first = rows[0]
    about = f"{title}. {first['split'].capitalize()} accuracy, mean ± standard deviation over"
    where = {"in-process": "the in-process grid", "flower": "Flower's simulation"}[first["engine"]]
    parts = [f"{about} the seeds; run on {where}.", _table(_ends(rows)), _table(_rounds(rows))]
    if (budgets := _budgets(rows)) is not None:
        parts += ["At equal bytes (the last round within so many megabytes, both ways):"]
        parts += [_table(budgets)]
    if target is not None:
        parts += [f"Cost of {100 * target:g} % (first round that has it):"]
        parts += [_table(_costs(rows, target))]
    return "\n\n".join(parts) + "\n"


def _ends(rows: Sequence[Row]) -> list[list[str]]:
    lines = [["setting", "method", "seeds", "accuracy at the end", "best", "worst fall"]]
    lines[0] += [*COSTS, "growth"]
    for (name, method), runs in grouped(rows).items():
        ends = [run[-1] for run in runs]
        cells = [name, LABELS[method], str(len(runs))]
        cells += [mean_std([row["accuracy"] for row in ends])]
        cells += [mean_std([max(row["accuracy"] for row in run) for run in runs])]
        cells += [f"{max(_worst_fall(run) for run in runs):.3f}"]
        cells += [f"{np.mean([cost(row) for row in ends]):.4g}" for cost in COSTS.values()]
        lines.append([*cells, f"{np.mean([row['growth'] for row in ends]):.2f}"])
    return lines


def _worst_fall(run: Sequence[Row]) -> float:
    """How far a round was below the best before it, at most."""
    accuracy = np.array([row["accuracy"] for row in run])
    return float((np.maximum.accumulate(accuracy) - accuracy).max())


def _rounds(rows: Sequence[Row]) -> list[list[str]]:
    last = max(row["round"] for row in rows)
    lines = [["setting", "method", *(f"round {number}" for number in range(1, last + 1))]]
    for (name, method), runs in grouped(rows).items():
        by_round = [
            mean_std([row["accuracy"] for run in runs for row in run if row["round"] == number])
            for number in range(1, last + 1)
        ]
        lines.append([name, LABELS[method], *by_round])
    return lines


def _costs(rows: Sequence[Row], target: float) -> list[list[str]]:
    lines = [["setting", "method", "seeds that reach it", *COSTS]]
    for (name, method), runs in grouped(rows).items():
        reached = [row for run in runs if (row := reaching(run, target)) is not None]
        cells = [mean_std([cost(row) for row in reached], 1) for cost in COSTS.values()]
        lines.append([name, LABELS[method], f"{len(reached)} of {len(runs)}", *cells])
    return lines


def _budgets(rows: Sequence[Row]) -> list[list[str]] | None:
    """Accuracy at quarters of what every method has spent; None without a comparison.

    What sends nothing, or ends after a round, has no curve to compare.
    """
    lines: list[list[str]] = []
    groups = grouped(rows)
    groups = {key: runs for key, runs in groups.items() if spent(runs[0][-1]) and len(runs[0]) > 1}
    for name in dict.fromkeys(name for name, _ in groups):
        methods = {method: runs for (own, method), runs in groups.items() if own == name}
        if len(methods) < 2:
            continue
        most = min(spent(run[-1]) for runs in methods.values() for run in runs)
        for share in (0.25, 0.5, 0.75, 1.0):
            for method, runs in methods.items():
                found = [within(run, share * most) for run in runs]
                if all(found):
                    cells = [name, f"{share * most:.1f}", LABELS[method]]
                    cells += [mean_std([rows[-1]["accuracy"] for rows in found])]
                    cells += [mean_std([_mean_accuracy(rows) for rows in found])]
                    lines.append(cells)
    head = ["setting", "MB", "method", "accuracy", "mean of the rounds so far"]
    return [head, *lines] if lines else None


def _mean_accuracy(run: Sequence[Row]) -> float:
    return float(np.mean([row["accuracy"] for row in run]))


def within(run: Sequence[Row], megabytes: float) -> list[Row]:
    """Return the rounds of a run in which no more was spent, 0.1 % of tolerance allowed."""
    return [row for row in run if spent(row) <= 1.001 * megabytes]


def reaching(run: Sequence[Row], target: float) -> Row | None:
    """Return the first round of a run with an accuracy of at least `target`; None if none has."""
    return next((row for row in run if row["accuracy"] >= target), None)


def _table(lines: Sequence[Sequence[str]]) -> str:
    """Markdown; a column that is empty everywhere is left out."""
    kept = [i for i in range(len(lines[0])) if any(line[i] for line in lines[1:])]
    cut = [[line[i] for i in kept] for line in lines]
    cut.insert(1, ["---"] * len(kept))
    return "\n".join(f"| {' | '.join(line)} |" for line in cut)


# ---------------------------------------------------------------------- plots


def plot_curves(rows: Sequence[Row], path: Path) -> None:
    """Draw accuracy against rounds, exchanges, bytes and client epochs, one line a method.

    Parameters
    ----------
    rows : sequence of dict
        One line of panels for each setting.
    path : Path
        The picture, PNG. Lines are means over the seeds, bands one standard deviation.
    """
    names = list(dict.fromkeys(row["setting"] for row in rows))
    figure = Figure(figsize=(14, 3.4 * len(names) + 0.6), layout="constrained")
    panels = figure.subplots(len(names), len(COSTS), sharey="row", squeeze=False)
    for line, name in zip(panels, names, strict=True):
        groups = {m: runs for (s, m), runs in grouped(rows).items() if s == name}
        for panel, (label, cost) in zip(line, COSTS.items(), strict=True):
            for method, runs in groups.items():
                _draw(panel, method, runs, cost)
            _finish(panel, label)
        line[0].set_ylabel(f"{rows[0]['split']} accuracy" + (f"\n{name}" if name else ""))
    panels[0][0].legend(loc="lower right", frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def _draw(panel: Axes, method: str, runs: Runs, cost: Callable[[Row], float]) -> None:
    length = min(map(len, runs))
    x = np.mean([[cost(row) for row in run[:length]] for run in runs], axis=0)
    y = np.array([[row["accuracy"] for row in run[:length]] for run in runs])
    mean, spread = y.mean(0), y.std(0, ddof=1) if len(y) > 1 else np.zeros(length)
    style = STYLES[method]
    panel.plot(x, mean, label=LABELS[method], markersize=5, linewidth=1.6, **style)
    panel.fill_between(x, mean - spread, mean + spread, color=style["color"], alpha=0.15, lw=0)


def plot_against(label: str, *, logarithmic: bool = False) -> Callable[[Sequence[Row], Path], None]:
    """Return a function that draws the accuracy at the end against the settings' `x`.

    Parameters
    ----------
    label : str
        What x is.
    logarithmic : bool (default: False)
        Scale of x.
    """

    def plot(rows: Sequence[Row], path: Path) -> None:
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        panel = figure.subplots()
        groups = grouped(rows)
        for method in dict.fromkeys(method for _, method in groups):
            points = [runs for (_, m), runs in groups.items() if m == method]
            x = [runs[0][0]["x"] for runs in points]
            y = [[run[-1]["accuracy"] for run in runs] for runs in points]
            spread = [np.std(v, ddof=1) if len(v) > 1 else 0.0 for v in y]
            means = [float(np.mean(v)) for v in y]
            name = f"{LABELS[method]}, round {points[0][0][-1]['round']}"
            panel.errorbar(x, means, spread, label=name, capsize=3, **STYLES[method])
        _finish(panel, label)
        if logarithmic:
            panel.set_xscale("log")
            panel.set_xticks(x, [f"{value:g}" for value in x], minor=False)
            panel.minorticks_off()
        panel.set_ylabel(f"{rows[0]['split']} accuracy at the end")
        panel.legend(frameon=False)
        figure.savefig(path, dpi=110)

    return plot


def plot_dots(rows: Sequence[Row], path: Path) -> None:
    """Draw the accuracy at the end of each setting, seeds as dots, means as strokes.

    Parameters
    ----------
    rows : sequence of dict
        Rows of one method a setting.
    path : Path
        The picture, PNG.
    """
    groups = grouped(rows)
    figure = Figure(figsize=(8, 0.32 * len(groups) + 1.2), layout="constrained")
    panel = figure.subplots()
    values = [[run[-1]["accuracy"] for run in runs] for runs in groups.values()]
    places = np.arange(len(values))[::-1]
    for place, value in zip(places, values, strict=True):
        panel.plot(value, [place] * len(value), "o", color="#9ecae1", markersize=5)
        panel.plot(np.mean(value), place, "|", color="#08519c", markersize=14, markeredgewidth=2)
    panel.set_yticks(places, [name or LABELS[method] for name, method in groups], fontsize=8)
    _finish(panel, f"{rows[0]['split']} accuracy at the end")
    figure.savefig(path, dpi=110)


def _finish(panel: Axes, label: str) -> None:
    panel.set_xlabel(label)
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
