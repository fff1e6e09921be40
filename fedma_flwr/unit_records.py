"""Assignments as entries of a record."""

from __future__ import annotations

from collections.abc import Mapping
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
