"""`UnitGroup`: units that must be permuted together."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class UnitGroup:
    """Units that must be permuted together.

    Parameters
    ----------
    size : int
        Number of units in the initial model.
    growable : bool (default: True)
        Whether zero-padded units may be added; if not, the group is matched at fixed width.
    reason : str (default: "")
        Why the group cannot grow.
    """

    size: int
    growable: bool = True
    reason: str = ""


def as_group(group: UnitGroup | int) -> UnitGroup:
    """A group from its size, or as it is."""
    return group if isinstance(group, UnitGroup) else UnitGroup(int(group))
