"""A spec as text: compact JSON for the wire, and a table for people."""

from __future__ import annotations

import json
from typing import Any

from fedma_flwr.structure.axes import SpecError
from fedma_flwr.structure.spec_parts import SpecParts
from fedma_flwr.structure.unit_groups import UnitGroup


def to_json(spec: SpecParts) -> str:
    """Compact JSON; what equals its default is left out (LeNet: 250 bytes)."""
    parts: dict[str, Any] = {
        "groups": {name: _group_entry(group) for name, group in spec.groups.items()},
        "axes": {name: spec.describe(name) for name in spec.axes},
        "outputs": dict(spec.outputs),
        "statistics": list(spec.statistics),
        "head": [] if spec.head == spec.default_head() else list(spec.head),
        "pinned": dict(spec.pinned),
        "directions": dict(spec.directions),
    }
    told = {name: part for name, part in parts.items() if part or name == "groups"}
    if not spec.head and spec.default_head():
        told["head"] = None
    if spec.variances != spec.default_variances():  # also if there are none
        told["variances"] = dict(spec.variances)
    return json.dumps(told, separators=(",", ":"))


def _group_entry(group: UnitGroup) -> int | list[int | str]:
    return group.size if group.growable else [group.size, group.reason]


def parse_json(text: str) -> dict[str, Any]:
    """The keyword arguments of a spec, its groups as keyword arguments of `UnitGroup`.

    Raises
    ------
    SpecError
        If the text is not a JSON object of the form that `to_json` writes.
    """
    try:
        parts = json.loads(text)
        parts["groups"] = {
            name: {"size": entry}
            if isinstance(entry, int)
            else {"size": entry[0], "growable": False, "reason": entry[1]}
            for name, entry in parts["groups"].items()
        }
    except (TypeError, KeyError, AttributeError, IndexError, json.JSONDecodeError) as error:
        raise SpecError(f"This is no permutation spec in JSON: {error}.") from error
    return dict(parts)


def table(spec: SpecParts) -> str:
    """The groups, with the tensors that make and use their units; then every tensor's axes."""
    rows = [("group", "units", "grows", "made by -> used by")]
    for name, group in spec.groups.items():
        makers = ", ".join(t for t in spec.axes if name in spec.output_groups(t))
        users = ", ".join(t for t in spec.axes if name in spec.input_groups(t))
        rows.append(
            (name, str(group.size), "yes" if group.growable else "no", f"{makers} -> {users}")
        )
    rows.append(("(head)", "", "", ", ".join(spec.head)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]])
        for row in rows
    ]
    lines += ["", f"{spec.matched_share():.0%} of the model's entries are in tensors with groups."]
    kept = {name: group.reason for name, group in spec.groups.items() if not group.growable}
    if kept:
        lines += ["", "matched at fixed width:"]
        lines += [f"{name}  {reason or 'fixed by the spec'}" for name, reason in kept.items()]
    lines += ["", *(f"{name}  [{spec.describe(name)}]" for name in spec.axes)]
    if spec.pinned:
        lines += ["", "pinned:", *(f"{axis}  {reason}" for axis, reason in spec.pinned.items())]
    return "\n".join(line.rstrip() for line in lines)
