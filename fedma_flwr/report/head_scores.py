"""What the head says of each class, before and after it is solved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedma_flwr.report.figures import drawing
from fedma_flwr.report.page import panel, panels
from fedma_flwr.report.records import Run

_WORDS = {"before": "before: the average of the trained heads", "after": "after: the solved head"}


def head_scores(run: Run) -> str:
    """The drawings of the last round whose head was solved; says so if nothing is recorded."""
    known = [stage for stage in run.stages if stage.get("head_scores")]
    solves = any(
        stage.get("solves_head")
        for stage in run.settings.get("plan", [])
        if isinstance(stage, dict)
    )
    if not known:
        if not solves:
            return ""
        return (
            "<h3>The head</h3><p class=soft>What it says of each class was not recorded: no head "
            "was solved, or there are more than 20 classes.</p>"
        )
    stage = known[-1]
    made = [
        _scores(stage["head_scores"][name], words)
        for name, words in _WORDS.items()
        if _is_square(stage["head_scores"].get(name))
    ]
    about = (
        f"<p>What the head gives on average for the examples of each class, in round "
        f"{stage['round']}. A confusion of single examples is not recorded: the server has no "
        "examples. Each row is scaled by itself.</p>"
    )
    return f"<h3>The head, before and after it is solved</h3>{about}{panels(made)}" if made else ""


def _is_square(rows: Any) -> bool:
    if not isinstance(rows, list) or not rows:
        return False
    numbers = [row for row in rows if row is not None]
    return all(
        isinstance(row, list)
        and len(row) == len(rows)
        and all(isinstance(value, int | float) for value in row)
        for row in numbers
    )


def own_class_highest(rows: Sequence[Sequence[float] | None]) -> tuple[int, int]:
    """For how many classes the mean score is highest on the class itself, and of how many."""
    known = [(place, row) for place, row in enumerate(rows) if row is not None]
    return sum(row[place] == max(row) for place, row in known), len(known)


def _scores(rows: Sequence[Sequence[float] | None], words: str) -> str:
    count = len(rows)
    filled: list[Sequence[float]] = [row if row is not None else [np.nan] * count for row in rows]
    scores = np.asarray(filled, dtype=float)
    low = scores.min(1, keepdims=True)
    span = scores.max(1, keepdims=True) - low
    scaled = (scores - low) / np.where(span > 0, span, 1.0)
    with drawing(3.1, f"Mean scores by true class, {words}") as made:
        axes = made.axes("score of class", "examples of class")
        axes.grid(visible=False)
        axes.imshow(scaled, cmap="viridis", vmin=0, vmax=1, interpolation="none", aspect="equal")
        step = max(count // 10, 1)
        axes.set_xticks(range(0, count, step))
        axes.set_yticks(range(0, count, step))
    highest, known = own_class_highest(rows)
    return panel(made.svg, f"{words}; highest on the class itself for {highest} of {known} classes")
