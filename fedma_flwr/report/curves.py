"""Accuracy and loss of one or several runs, and what they have cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedma_flwr.report.figures import MARKERS, SERIES, drawing
from fedma_flwr.report.page import panel, panels, table, text
from fedma_flwr.report.records import Run

MEGABYTE = 1e6
COSTS = {
    "megabytes, both ways": "bytes",
    "exchanges with the clients": "exchanges",
    "local epochs of a client": "client_epochs",
    "seconds": "seconds",
}
_MOST_POINTS = 300
_MOST_ROWS = 40


def cost(run: Run, key: str) -> list[float]:
    """A cumulative cost after each round."""
    if key != "bytes":
        return run.costs(key)
    both = zip(run.costs("bytes_up"), run.costs("bytes_down"), strict=True)
    return [(up + down) / MEGABYTE for up, down in both]


def curves(runs: Sequence[Run]) -> str:
    """The section of curves and the table of ends; says so where nothing was measured."""
    parts = [legend(runs)] if len(runs) > 1 else []
    for word in ("accuracy", "loss"):
        if any(not math.isnan(value) for run in runs for value in run.curve(word)):
            parts.append(f"<h3>{word.capitalize()}, and what it has cost</h3>")
            parts.append(panels((_panel(runs, word, *n) for n in COSTS.items()), "four"))
    if len(parts) < 2:
        parts.append(
            "<p class=soft>No accuracy or loss was recorded: give <code>start</code> an "
            "<code>evaluate_fn</code>, or evaluate on the clients.</p>"
        )
    return "\n".join([*parts, _ends(runs), *_rounds(runs)])


def legend(runs: Sequence[Run]) -> str:
    """Which colour is which run."""
    items = "".join(
        f'<li><i style="background: var(--s{place % len(SERIES)})"></i>{text(run.name, 60)}</li>'
        for place, run in enumerate(runs)
    )
    return f"<ul class=legend>{items}</ul>"


def _panel(runs: Sequence[Run], word: str, label: str, key: str) -> str:
    with drawing(2.5, f"{word} against {label}", 3.4) as made:
        axes = made.axes(label, word)
        for place, run in enumerate(runs):
            points = list(zip(cost(run, key), run.curve(word), strict=True))
            points = [pair for pair in points if not math.isnan(pair[1])]
            points = points[:: math.ceil(len(points) / _MOST_POINTS) or 1]
            marker = MARKERS[place % len(MARKERS)] if len(points) <= 40 else ""
            line = "-" if place < len(SERIES) else "--"
            axes.plot(
                [x for x, _ in points],
                [y for _, y in points],
                color=SERIES[place % len(SERIES)],
                marker=marker,
                linestyle=line,
                clip_on=False,
            )
        axes.set_xlim(left=0)
        axes.margins(y=0.08)
        axes.locator_params(axis="x", nbins=5)
    return panel(made.svg, "")


def figure(value: float, form: str = ".3f") -> str:
    """A number as text; a dash where there is none."""
    return "-" if math.isnan(value) else f"{value:{form}}"


def megabytes(count: float) -> str:
    """Bytes as megabytes, with as many digits as say something."""
    value = count / MEGABYTE
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _ends(runs: Sequence[Run]) -> str:
    head = ["run", "accuracy", "best", "loss", "MB down", "MB up", "exchanges", "epochs"]
    rows = [_end(run) for run in runs if run.rounds]
    if not rows:
        return ""
    made = table([*head, "seconds", "growth", "rounds"], rows, name="ends")
    return f"<h3>At the end</h3>{made}"


def _end(run: Run) -> list[str]:
    accuracy, last = run.curve("accuracy"), run.rounds[-1]
    known = [value for value in accuracy if not math.isnan(value)]
    return [
        run.name,
        figure(accuracy[-1]),
        figure(max(known, default=math.nan)),
        figure(run.curve("loss")[-1]),
        *_costs(run, -1),
        f"{float(last.get('growth', 1.0)):.2f}",
        str(len(run.rounds)),
    ]


def _costs(run: Run, place: int) -> list[str]:
    return [
        *(megabytes(run.costs(key)[place]) for key in ("bytes_down", "bytes_up")),
        f"{run.costs('exchanges')[place]:.0f}",
        f"{run.costs('client_epochs')[place]:.0f}",
        f"{run.costs('seconds')[place]:.0f}",
    ]


def _rounds(runs: Sequence[Run]) -> list[str]:
    """A table of the rounds of each run, folded; of many rounds some."""
    head = ["round", "accuracy", "loss", "MB down", "MB up", "exchanges", "epochs", "seconds"]
    parts = []
    for run in runs[:10]:
        step = math.ceil(len(run.rounds) / _MOST_ROWS) or 1
        places = [p for p in range(len(run.rounds)) if (p + 1) % step == 0]
        accuracy, loss = run.curve("accuracy"), run.curve("loss")
        rows = [
            [str(run.rounds[p]["round"]), figure(accuracy[p]), figure(loss[p]), *_costs(run, p)]
            for p in places
        ]
        if rows:
            name = text(run.name, 60)
            parts.append(f"<details><summary>{name}, round by round</summary>")
            parts.append(f"{table(head, rows)}</details>")
    return parts
