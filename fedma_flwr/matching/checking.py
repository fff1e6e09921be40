"""Whether assignments, and what a matcher of somebody's own returns, are a matching at all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .arrays import Integers
from .matcher import Matching


def check_matching(matching: object, widths: Sequence[int], max_width: int | None) -> None:
    """Refuse what is no matching of these clients.

    Parameters
    ----------
    matching : object
        What a matcher has returned.
    widths : sequence of J int
        The units that each client has.
    max_width : int or None
        The most global units that were asked for.

    Raises
    ------
    ValueError
        It names the matcher as the one at fault.
    """
    if not isinstance(matching, Matching):
        raise ValueError(f"matcher: `match` returned a {type(matching).__name__}, not a Matching.")
    own = [len(assignment) for assignment in matching.assignments]
    if own != list(widths):
        raise ValueError(f"matcher: it has assigned {own} units; the clients have {list(widths)}.")
    try:
        check_assignments(matching.assignments)
    except ValueError as error:
        raise ValueError(f"matcher: its matching cannot be used: {error}.") from error
    if len(matching.units) != matching.width:
        raise ValueError(
            f"matcher: it has {len(matching.units)} global units, but the popularity of "
            f"{matching.width}."
        )
    if max_width is not None and matching.width > max_width:
        raise ValueError(
            f"matcher: it has made {matching.width} global units; at most {max_width} were allowed."
        )


def check_assignments(assignments: Sequence[Integers]) -> None:
    """Refuse what cannot be the assignments of one group.

    Raises
    ------
    ValueError
        No client, a client without units, two units of a client in one global unit, a negative
        number, or a global unit that no client has.
    """
    if not assignments or not all(len(assignment) for assignment in assignments):
        raise ValueError("assignments: expected at least one client, each with at least one unit")
    for client, assignment in enumerate(assignments):
        if len(np.unique(assignment)) < len(assignment):
            raise ValueError(f"assignments: client {client} has two units in one global unit")
    used = np.unique(np.concatenate(assignments))
    if not np.array_equal(used, np.arange(len(used))):
        raise ValueError(
            f"assignments: expected global units 0 .. {len(used) - 1} and every one of them, got "
            f"{used[0]} .. {used[-1]}"
        )
