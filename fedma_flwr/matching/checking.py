"""Whether what a matcher of somebody's own returns is a matching at all."""

from __future__ import annotations

from collections.abc import Sequence

from .matcher import Matching
from .saved_matching import check_assignments


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
