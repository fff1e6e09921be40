"""A round's plan, drawn: what goes to the clients in each stage, what they do, what comes of it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedma_flwr.report.curves import MEGABYTE, megabytes
from fedma_flwr.report.figures import INK, LINES, PAPER, SERIES, drawing
from fedma_flwr.report.page import panel, plain
from fedma_flwr.report.records import HEAD, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SERVER, _CLIENTS = 0.17, 0.83  # where their lines stand
_MOST = 12  # stages that are drawn
_STEP = 1.25  # inches a stage


def plan(run: Run) -> str:
    """The drawing of the last complete round, or of what there is of one."""
    stages = last_round(run)
    if not stages:
        return ""
    shown = stages[:_MOST]
    number = shown[0]["round"]
    with drawing(0.5 + _STEP * len(shown), f"The stages of round {number}") as made:
        axes = made.figure.subplots()
        axes.set_axis_off()
        axes.set_xlim(0, 1)
        axes.set_ylim(len(shown), -0.4)
        for place, who in ((_SERVER, "server"), (_CLIENTS, "clients")):
            axes.plot([place, place], [-0.1, len(shown)], color=LINES, linewidth=1.2)
            axes.text(place, -0.2, who, ha="center", va="bottom", weight="bold")
        planned = run.settings.get("plan", [])
        for row, stage in enumerate(shown):
            place = int(stage["stage"])
            known = planned[place] if place < len(planned) else {}
            _stage(axes, row, stage, known if isinstance(known, dict) else {})
    more = f" The other {len(stages) - _MOST} stages are like these." if len(stages) > _MOST else ""
    what = f"Round {number}, as it went. Sizes are those of one client on average.{more}"
    return f"<h3>The plan of a round</h3>{panel(made.svg, what)}"


def last_round(run: Run) -> list[Mapping[str, Any]]:
    """The stages of the last round that came to its last one; of the last round, if none did."""
    ended = [s["round"] for s in run.stages if s["stage"] == s.get("stages", 1) - 1]
    known = ended or [stage["round"] for stage in run.stages]
    return [s for s in run.stages if s["round"] == known[-1]] if known else []


def _stage(axes: Axes, row: int, stage: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    asked, answered = max(stage.get("cohort", 1), 1), max(stage.get("answered", 1), 1)
    down, up = stage.get("bytes_down", 0) / asked, stage.get("bytes_up", 0) / answered
    _arrow(axes, row + 0.08, (_SERVER, _CLIENTS), _size(down))
    _box(axes, _CLIENTS, row + 0.33, _what_clients_do(stage, known), SERIES[1])
    _arrow(axes, row + 0.60, (_CLIENTS, _SERVER), _size(up))
    _box(axes, _SERVER, row + 0.80, _what_server_does(stage, known), SERIES[0])


def _arrow(axes: Axes, y: float, ends: Sequence[float], label: str) -> None:
    way = {"arrowstyle": "-|>", "color": INK, "linewidth": 1.0}
    axes.annotate("", (ends[1], y), (ends[0], y), arrowprops=way)
    axes.text(0.5, y - 0.03, label, ha="center", va="bottom", fontsize=8)


def _size(count: float) -> str:
    return f"{megabytes(count)} MB" if count >= MEGABYTE / 100 else f"{count / 1000:.2g} kB"


def _box(axes: Axes, x: float, y: float, words: str, colour: str) -> None:
    wrapped = "\n".join(textwrap.wrap(words, 21)[:3])
    box = {"boxstyle": "round,pad=0.35", "facecolor": PAPER, "edgecolor": colour, "linewidth": 1.4}
    axes.text(x, y, wrapped, ha="center", va="center", fontsize=8, bbox=box)


def _what_clients_do(stage: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    epochs = float(stage.get("epochs", 0.0))
    if known.get("solves_head"):
        return "sum up the inputs of the head"
    if known and not known.get("trains", True):
        return "estimate running statistics"
    length = f" {epochs:g} epochs" if epochs else ""
    return f"train{length}" if stage["name"] != HEAD else f"train the head{length}"


def _what_server_does(stage: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    groups = [plain(group, 12) for group in stage.get("groups", [])]
    if known.get("solves_head"):
        return "solve the head"
    if not groups:
        return "average"
    return f"match {', '.join(groups) if len(groups) <= 3 else f'{len(groups)} groups'}, average"
