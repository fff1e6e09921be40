"""The README's picture, from the rows that lie in ``simulations/results``.

``python -m simulations.picture`` draws docs/accuracy.png: accuracy against bytes for FedMA and
FedAvg, and what matching is worth when every client begins with weights of its own.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from simulations.progress import MEGABYTE
from simulations.report import STYLES

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "simulations" / "results"
CURVES = {"fedma": "FedMA", "fedavg": "FedAvg"}
OWN = {  # by the setting's name in the rows
    "own start: identity: not matched": "not matched",
    "own start: defaults": "matched",
    "own start: calibrated variances, BBPMAP()": "matched,\nlayers grow",
}
SKEWS = {"own_starts_alpha01": "strong skew (0.1)", "own_starts_alpha05": "mild skew (0.5)"}
COLOURS = ("#0072B2", "#009E73")
GAP = 0.24
TARGET = 0.95

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(prog="python -m simulations.picture", description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "accuracy.png")
    draw(parser.parse_args(argv).output)


def draw(output: Path) -> None:
    """Write the picture to `output`."""
    figure = Figure(figsize=(8.4, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    _curves(left, rows("compare_digits"))
    _own_weights(right)
    figure.savefig(output, dpi=130)


def rows(name: str) -> list[Row]:
    """The rows of one experiment, one for each round."""
    lines = (RESULTS / name / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def curve(found: Iterable[Row], method: str) -> np.ndarray:
    """(rounds, 3) megabytes and accuracy's mean and standard deviation over the seeds."""
    by_round: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for row in found:
        if row["method"] == method:
            megabytes = (row["bytes_up"] + row["bytes_down"]) / MEGABYTE
            by_round[row["round"]].append((megabytes, row["accuracy"]))
    values = [np.array(by_round[number]) for number in sorted(by_round)]
    return np.array([(*v.mean(0), v[:, 1].std(ddof=1) if len(v) > 1 else 0.0) for v in values])


def _curves(axes: Axes, found: Sequence[Row]) -> None:
    for method, name in CURVES.items():
        megabytes, mean, deviation = curve(found, method).T
        colour = STYLES[method]["color"]
        axes.plot(megabytes, mean, label=name, **STYLES[method])
        axes.fill_between(megabytes, mean - deviation, mean + deviation, color=colour, alpha=0.2)
    axes.axhline(TARGET, color="#888888", linestyle=":", linewidth=1)
    axes.annotate("95 %", (2, TARGET + 0.008), color="#555555", fontsize=9)
    axes.set(
        title="Ten clients, skewed digits: accuracy for its bytes",
        xlabel="MB sent, all clients, both ways",
        ylabel="test accuracy",
        xlim=(0, 525),
        ylim=(0.2, 1.0),
    )
    axes.legend(loc="lower right", frameon=False)
    _tidy(axes)


def _own_weights(axes: Axes) -> None:
    """One round from weights of the clients' own: points, since the axis does not begin at 0."""
    positions = np.arange(len(OWN))
    for side, (name, skew) in enumerate(SKEWS.items()):
        found = rows(name)
        found_by = [accuracies(found, setting) for setting in OWN]
        means = [values.mean() for values in found_by]
        places = positions + (side - 0.5) * GAP
        deviations = [values.std(ddof=1) for values in found_by]
        style = {"color": COLOURS[side], "marker": "os"[side], "markersize": 8, "capsize": 4}
        axes.errorbar(places, means, deviations, linestyle="none", label=skew, **style)
        for place, mean in zip(places, means, strict=True):
            away = {"ha": "left" if side else "right", "va": "center", "fontsize": 8}
            axes.annotate(f"{mean:.3f}", (place + (side - 0.5) * GAP * 0.8, mean), **away)
    axes.set_xticks(positions, list(OWN.values()))
    axes.set(title="Own first weights, one round", ylim=(0.945, 0.985), xlim=(-0.6, 2.6))
    axes.legend(loc="upper left", frameon=False, fontsize=9)
    _tidy(axes)


def accuracies(found: Iterable[Row], setting: str) -> np.ndarray:
    """(seeds,) accuracies after the first round."""
    values = [r["accuracy"] for r in found if r["setting"] == setting and r["round"] == 1]
    if not values:
        raise ValueError(f"no row of the setting {setting!r}")
    return np.array(values)


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)


if __name__ == "__main__":
    main()
