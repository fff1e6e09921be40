"""Who took part in which stage, who was dropped, and why."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fedma_flwr.report.figures import BAD, GOOD, drawing
from fedma_flwr.report.page import panel, panels, plain, table, text
from fedma_flwr.report.records import Run

_MOST_CLIENTS, _MOST_EXCHANGES = 40, 60  # with more, numbers are drawn in place of names
_MOST_ROWS = 100
_LABEL = 14  # characters of a client key


def participation(run: Run) -> str:
    """Drawings of who took part, and tables of who did not, with the reasons."""
    stages = run.stages
    if not stages:
        return "<p class=soft>Its exchanges were not recorded.</p>"
    return "\n".join(
        [
            "<h3>Who took part</h3>",
            panels([_numbers(stages), *_names(stages)]),
            _dropped(stages),
            _given_up(run),
        ]
    )


def label(stage: Mapping[str, Any]) -> str:
    """An exchange by its round and stage, from 1."""
    return f"{stage['round']}.{stage['stage'] + 1}"


def _numbers(stages: Sequence[Mapping[str, Any]]) -> str:
    answered = [stage.get("answered", 0) for stage in stages]
    asked = [stage.get("cohort", 0) for stage in stages]
    dropped = [max(all_ - used, 0) for all_, used in zip(asked, answered, strict=True)]
    with drawing(2.4, "Clients whose reply was used, and clients that were dropped") as made:
        axes = made.axes("round.stage", "clients")
        if len(stages) > _MOST_EXCHANGES:
            axes.stackplot(range(len(stages)), answered, dropped, colors=[GOOD, BAD])
        else:
            _bars(axes, answered, dropped)
        _ticks(axes, stages)
        axes.locator_params(axis="y", integer=True)
        axes.set_ylim(bottom=0)
    what = f'<b style="color: {GOOD}">green</b>: the reply was used; '
    return panel(made.svg, f'{what}<b style="color: {BAD}">red</b>: no reply, or a refused one')


def _bars(axes: Any, answered: Sequence[int], dropped: Sequence[int]) -> None:
    places = range(len(answered))
    axes.bar(places, answered, color=GOOD, width=0.8)
    axes.bar(places, dropped, bottom=answered, color=BAD, width=0.8)


def _ticks(axes: Any, stages: Sequence[Mapping[str, Any]]) -> None:
    """Labels of some exchanges, so many as there is room for."""
    step = max(-(-len(stages) // 9), 1)
    places = list(range(0, len(stages), step))
    axes.set_xticks(places, [label(stages[place]) for place in places])
    axes.set_xlim(-0.6, max(len(stages), 2) - 0.4)


def _names(stages: Sequence[Mapping[str, Any]]) -> list[str]:
    """One square a client and exchange; nothing if there are too many, or names are not known."""
    taken = [set(map(str, stage.get("took_part", []))) for stage in stages]
    missed = [set(map(str, stage.get("dropped", {}))) for stage in stages]
    keys = sorted(set().union(*taken, *missed), key=_in_order)
    known = all(len(t) == s.get("answered", 0) for t, s in zip(taken, stages, strict=True))
    if not keys or not known or len(keys) > _MOST_CLIENTS or len(stages) > _MOST_EXCHANGES:
        return []
    with drawing(0.7 + 0.19 * len(keys), "Each client in each exchange") as made:
        axes = made.axes("round.stage", "client")
        axes.grid(visible=False)
        for groups, colour in ((taken, GOOD), (missed, BAD)):
            points = [(x, keys.index(key)) for x, group in enumerate(groups) for key in group]
            size = min(260 / len(stages), 11) * 0.85
            axes.plot(
                [x for x, _ in points],
                [y for _, y in points],
                linestyle="",
                marker="s",
                markersize=size,
                markeredgewidth=0,
                color=colour,
            )
        axes.set_yticks(range(len(keys)), [plain(key, _LABEL) for key in keys])
        axes.set_ylim(len(keys) - 0.4, -0.6)
        _ticks(axes, stages)
    what = "each client by its key; empty: it was not asked, or not in this exchange any more"
    return [panel(made.svg, what)]


def _in_order(key: str) -> tuple[list[Any], str]:
    """Numbers by their size, other text by itself."""
    parts = re.split(r"(\d{1,18})", key)
    return [(1, int(p), "") if p.isdecimal() else (0, 0, p) for p in parts], key


def _dropped(stages: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (label(stage), stage["name"], key, reason)
        for stage in stages
        for key, reason in stage.get("dropped", {}).items()
    ]
    if not rows:
        return "<p>No client was dropped.</p>"
    common = Counter(str(reason) for *_, reason in rows).most_common(1)[0]
    times = "Once a client was dropped" if len(rows) == 1 else f"{len(rows)} times one was dropped"
    said = f"<p>{times}. The most frequent reason ({common[1]} of {len(rows)}): "
    more = ""
    if len(rows) > _MOST_ROWS:
        more = f"<p class=soft>And {len(rows) - _MOST_ROWS} more.</p>"
    head = ["round.stage", "stage", "client", "why it was dropped"]
    made = table(head, rows[:_MOST_ROWS], numbers=False, name="dropped")
    return f"{said}{text(common[0])}</p>{made}{more}"


def _given_up(run: Run) -> str:
    rows = [
        (str(entry["round"]), entry["given-up"]) for entry in run.rounds if entry.get("given-up")
    ]
    if not rows:
        return ""
    made = table(["round", "why it was given up"], rows[:_MOST_ROWS], numbers=False)
    return f"<p>The model stayed what it was in {len(rows)} rounds.</p>{made}"
