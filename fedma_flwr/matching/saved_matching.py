"""Assignments that are known already, in a matcher's place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .arrays import Floats, Integers, average_members
from .checking import check_assignments
from .matcher import Matching, Output
from .validate import check_max_width, check_units, check_weights


@dataclass(frozen=True, eq=False)
class SavedMatching:
    """A matching that was found earlier: nothing is searched.

    It is a :class:`Matcher`, so that it can be put in another's place.

    Parameters
    ----------
    assignments : tuple of int arrays, shapes (L_j,)
        For every client: local unit -> global unit, as in :class:`Matching`.
    objective : float or None (default: None)
        What the matcher that found them called the objective. None: the one at zero prior mean
        and unit variances, ``sum_i |sum of members|^2 / (1 + popularity)``.
    sweeps : int (default: 0)
        The sweeps that it took.
    max_width : int or None (default: None)
        The largest global width where ``match`` is given none.

    Raises
    ------
    ValueError
        Assignments of one client that are not distinct or negative, or a global unit that no
        client has.

    Examples
    --------
    >>> import numpy as np
    >>> from fedma_flwr.matching import BBPMAP
    >>> found = BBPMAP().match([np.eye(3), np.eye(3)[::-1]])
    >>> again = SavedMatching(found.assignments).match([np.eye(3), np.eye(3)[::-1]])
    >>> bool((again.units == found.units).all())
    True
    """

    assignments: tuple[Integers, ...]
    objective: float | None = None
    sweeps: int = 0
    max_width: int | None = None
    output: ClassVar[Output] = "mean"

    def __post_init__(self) -> None:
        check_assignments(self.assignments)

    @property
    def width(self) -> int:
        """The number of global units, L."""
        return 1 + max(int(assignment.max()) for assignment in self.assignments)

    def match(
        self,
        units: Sequence[Floats],
        *,
        weights: Sequence[float] | Floats | None = None,
        max_width: int | None = None,
        seed: int = 0,
    ) -> Matching:
        """Average the units as the assignments say; see :meth:`Matcher.match`.

        Raises
        ------
        ValueError
            As :meth:`BBPMAP.match`, and if there are other clients or other widths than in
            `assignments`, or more global units than `max_width`.
        """
        arrays = check_units(units)
        limit = check_max_width(arrays, self.max_width, max_width)
        mass = check_weights(weights, len(arrays))
        ours, theirs = ([len(rows) for rows in group] for group in (arrays, self.assignments))
        if ours != theirs:
            raise ValueError(f"units: the clients have {ours} units, the saved matching {theirs}")
        if limit is not None and self.width > limit:
            raise ValueError(
                f"max_width: {limit}, the saved matching has {self.width} global units"
            )
        return matching_of(arrays, self.assignments, mass, self.objective, self.sweeps)


def matching_of(
    units: Sequence[Floats],
    assignments: tuple[Integers, ...],
    weights: Floats | None,
    objective: float | None = None,
    sweeps: int = 0,
) -> Matching:
    """Return the matching of some assignments: global units are their members' (weighted) means.

    Without an objective it is the one at zero prior mean and unit variances,
    ``sum_i |sum of members|^2 / (1 + popularity)``.
    """
    popularity = np.bincount(np.concatenate(assignments))
    width = len(popularity)
    mean = average_members(units, assignments, width, weights)
    if objective is None:
        plain = mean if weights is None else average_members(units, assignments, width)
        objective = float((popularity**2 / (1 + popularity) * (plain**2).sum(1)).sum())
    return Matching(assignments, mean, popularity, objective, sweeps)
