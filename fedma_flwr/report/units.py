"""What matching did to the units: widths, popularity, how alike matched ones are, some filters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedma_flwr.report.figures import INK, LINES, SERIES, drawing
from fedma_flwr.report.page import panel, panels, plain
from fedma_flwr.report.records import Run

_MOST_GROUPS = 24
_LABEL = 16
_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the clients, between which popularity is told apart
_SHADES = ("#c6dbef", "#8fbfe0", "#559fd0", "#2b7bba", "#0b559f")


def units(run: Run) -> str:
    """The drawings of what was matched; nothing where nothing was."""
    matched = [stage for stage in run.stages if stage.get("groups")]
    if not matched:
        return ""
    latest: dict[str, Mapping[str, Any]] = {}
    for stage in matched:
        latest.update(dict.fromkeys(stage.get("popularity", {}), stage))
    groups = list(latest)[:_MOST_GROUPS]
    made = [*_growth(run, groups), *_popularity(latest, groups), *_similarity(matched, groups)]
    hidden = len(latest) - len(groups)
    more = f"<p class=soft>{hidden} more groups are not drawn.</p>" if hidden > 0 else ""
    parts = ["<h3>Units</h3>", _identity(matched), panels(made), more, *_filters(matched)]
    return "\n".join(part for part in parts if part)


def _identity(matched: Sequence[Mapping[str, Any]]) -> str:
    shares = [s["identity"] for s in matched if isinstance(s.get("identity"), int | float)]
    if not shares:
        return ""
    mean = 100 * sum(shares) / len(shares)
    words = f"{mean:.0f} % of the clients kept all units in their places when they were matched."
    usual = " From a common start that is usual: there is little to permute." if mean > 50 else ""
    return f"<p>{words}{usual}</p>"


def _height(groups: Sequence[str]) -> float:
    return 0.9 + 0.24 * len(groups)


def _names_on(axes: Any, groups: Sequence[str]) -> None:
    axes.set_yticks(range(len(groups)), [plain(group, _LABEL) for group in groups])
    axes.set_ylim(len(groups) - 0.4, -0.6)


def _growth(run: Run, groups: Sequence[str]) -> list[str]:
    """Each group's width after the first and the last round, against the initial one."""
    widths = [entry.get("widths", {}) for entry in run.rounds if entry.get("widths")]
    if not widths:
        widths = [stage["widths"] for stage in run.stages if stage.get("widths")]
    initial = run.settings.get("groups", {})
    first, last = (widths[0], widths[-1]) if widths else ({}, {})
    shown = [g for g in groups if g in first and g in last]
    if not shown:
        return []
    begun = {g: initial.get(g, first[g]) for g in shown}
    with drawing(_height(shown), "The width of each group of units") as made:
        axes = made.axes("units now / units at the start")
        axes.axvline(1.0, color=INK, linewidth=0.8)
        for row, group in enumerate(shown):
            ratio = last[group] / max(begun[group], 1)
            axes.plot([1.0, ratio], [row, row], color=SERIES[0], linewidth=2.4)
            axes.plot([ratio], [row], "o", color=SERIES[0], markersize=5)
            axes.annotate(
                f"{begun[group]} → {last[group]}",
                (ratio, row),
                (6, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        low, high = axes.get_xlim()
        axes.set_xlim(min(low, 0.97), max(high, 1.1) + 0.35 * (max(high, 1.1) - min(low, 0.97)))
        _names_on(axes, shown)
    return [panel(made.svg, "widths, from the initial model to the last round")]


def _popularity(latest: Mapping[str, Mapping[str, Any]], groups: Sequence[str]) -> list[str]:
    """How many of the clients hold a unit, as shares of a group's units."""
    with drawing(_height(groups), "How many clients hold the units of each group") as made:
        axes = made.axes("share of the units")
        for row, group in enumerate(groups):
            counts = [max(int(c), 0) for c in latest[group]["popularity"][group]]
            left = 0.0
            for shade, share in zip(_SHADES, _by_share(counts), strict=True):
                axes.barh(row, share, left=left, color=shade, height=0.7)
                left += share
        axes.set_xlim(0, 1)
        _names_on(axes, groups)
    words = ("one client", "up to a half", "up to three quarters", "more", "all")
    chips = " ".join(
        f'<span style="white-space: nowrap"><i style="display: inline-block; width: 0.9em; '
        f'height: 0.9em; background: {shade}"></i> {word}</span>'
        for shade, word in zip(_SHADES, words, strict=True)
    )
    return [panel(made.svg, f"popularity in the last round: units held by {chips}")]


def _by_share(counts: Sequence[int]) -> list[float]:
    """Shares of units that 1, up to 1/2, up to 3/4, fewer than all, and all clients hold."""
    holders = max((n for n, count in enumerate(counts, start=1) if count), default=1)
    total, clients = max(sum(counts), 1), max(len(counts), holders)
    sums = [0.0] * len(_SHARES)
    for held, count in enumerate(counts, start=1):
        share = held / clients
        place = (
            4 if held == clients else 0 if held == 1 else 1 + sum(share > s for s in (0.5, 0.75))
        )
        sums[place] += count / total
    return sums


def _similarity(matched: Sequence[Mapping[str, Any]], groups: Sequence[str]) -> list[str]:
    """The cosines between matched units, in the last round in which each group was matched."""
    found = {g: s["similarity"][g] for s in matched for g in s.get("similarity", {}) if g in groups}
    found = {g: found[g] for g in groups if len(found.get(g, [])) == 5}
    if not found:
        return []
    with drawing(_height(list(found)), "How alike matched units are") as made:
        axes = made.axes("cosine with the other clients' units in its place")
        for row, (low, lower, middle, upper, high) in enumerate(found.values()):
            axes.plot([low, high], [row, row], color=LINES, linewidth=1.6)
            axes.plot([lower, upper], [row, row], color=SERIES[0], linewidth=6)
            axes.plot([middle], [row], "|", color=INK, markersize=11, markeredgewidth=1.6)
        axes.set_xlim(min(0.75, *(min(q) - 0.05 for q in found.values())), 1.02)
        _names_on(axes, list(found))
    what = "thin: 5 to 95 % of the matched units; thick: the middle half; line: the median"
    return [panel(made.svg, what)]


def _filters(matched: Sequence[Mapping[str, Any]]) -> list[str]:
    """The first layer's filters of some units: two clients', and the average."""
    known = [stage for stage in matched if _is_drawable(stage.get("filters", {}))]
    if not known:
        return [
            "<p class=soft>No filters are shown: the records hold none, or the first layer is no "
            "convolution of pictures.</p>"
        ]
    shown = [known[0]] if len(known) == 1 else [known[0], known[-1]]
    made = [panel(_filter_rows(stage["filters"]), _filter_words(stage)) for stage in shown]
    return ["<h3>Filters of matched units</h3>", panels(made)]


def _filter_words(stage: Mapping[str, Any]) -> str:
    return (
        f"round {stage['round']}: each column is one global unit. Above the filters of two clients "
        "stands which of their own units it is."
    )


def _is_drawable(filters: Mapping[str, Any]) -> bool:
    try:
        channels, height, width = filters["shape"]
        sizes = {len(v) for unit in filters["units"] for v in unit["values"]}
        return len(filters["clients"]) == 2 and sizes == {channels * height * width}
    except (KeyError, TypeError, ValueError):
        return False


def _filter_rows(filters: Mapping[str, Any]) -> str:
    import numpy as np

    shape, columns = filters["shape"], filters["units"]
    names = [f"client\n{plain(key, 9)}" for key in filters["clients"]] + ["average"]
    with drawing(2.7, "Filters of matched units, client by client, and their average") as made:
        grid = made.figure.subplots(3, len(columns), squeeze=False)
        for column, unit in enumerate(columns):
            tops = [f"{place}" for place in unit["local"]] + [f"{unit['global']}"]
            for row, (values, top) in enumerate(zip(unit["values"], tops, strict=True)):
                axes = grid[row][column]
                pixels = np.asarray(values, dtype=float).reshape(shape).transpose(1, 2, 0) / 127
                picture = pixels[..., 0] if shape[0] == 1 else np.clip((pixels + 1) / 2, 0, 1)
                axes.imshow(picture, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="none")
                axes.set_title(f"unit {top}", fontsize=7, pad=2)
                axes.set_xticks([])
                axes.set_yticks([])
                if column == 0:
                    axes.set_ylabel(names[row], fontsize=8, rotation=0, ha="right", va="center")
    return made.svg
