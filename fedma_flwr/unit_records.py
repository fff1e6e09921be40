"""Assignments as entries of a record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fedma_flwr import reading, wire

Assignments = dict[str, Tensor]


def to_entries(assignments: Assignments, widths: Mapping[str, int]) -> dict[str, Any]:
    """Encode which global units a client's units are, and the global widths."""
    entries: dict[str, Any] = {}
    for group, units in assignments.items():
        entries[f"units.{group}"] = wire.units_to_bytes(units, widths[group])
        entries[f"width.{group}"] = int(widths[group])
    return entries


def from_entries(record: Mapping[str, Any]) -> tuple[Assignments, dict[str, int]]:
    """Decode what `to_entries` made; ValueError if it is something else."""
    groups = [key.removeprefix("width.") for key in record if key.startswith("width.")]
    most = reading.LARGEST_WIDTH
    widths = {group: reading.whole(record, f"width.{group}", most) for group in groups}
    units = {g: reading.units(record, f"units.{g}", width) for g, width in widths.items()}
    return units, widths


#: Narrower models that a client may be asked to measure.
MOST_PARTS = 4


def parts_to_entries(parts: Sequence[Assignments], widths: Mapping[str, int]) -> dict[str, Any]:
    """Encode which of a client's units make up each of some narrower models."""
    entries: dict[str, Any] = {"parts": len(parts)} if parts else {}
    for number, units in enumerate(parts):
        own = to_entries(units, widths)
        entries.update({f"part.{number}.{key}": value for key, value in own.items()})
    return entries


def parts_from_entries(
    record: Mapping[str, Any],
) -> tuple[tuple[Assignments, ...], dict[str, int]]:
    """Decode what `parts_to_entries` made; ValueError if it is something else."""
    found: list[Assignments] = []
    widths: dict[str, int] = {}
    for number in range(reading.whole(record, "parts", MOST_PARTS)):
        prefix = f"part.{number}."
        own = {key.removeprefix(prefix): record[key] for key in record if key.startswith(prefix)}
        units, widths = from_entries(own)
        found.append(units)
    return tuple(found), widths
