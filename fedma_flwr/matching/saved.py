"""Assignments that are known already, in a matcher's place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .result import Floats, Integers, Matching, average_members
from .validate import check_max_width, check_units, check_weights


@dataclass(frozen=True, eq=False)
class SavedMatching:
    """A matching that was found earlier: nothing is searched.

    It has the interface of :class:`BBPMAP`, so that it can be put in its place.

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
        The largest global width.

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

    def __post_init__(self) -> None:
        check_assignments(self.assignments)

    @property
    def width(self) -> int:
        """The number of global units, L."""
        return 1 + max(int(assignment.max()) for assignment in self.assignments)

    def match(
        self,
        units: Sequence[Floats],
        prior_mean: float | Floats | None = None,
        weights: Sequence[float] | Floats | None = None,
        orders: Sequence[Sequence[int]] | Integers | None = None,
        seed: int = 0,
    ) -> Matching:
        """Average the units as the assignments say.

        Parameters
        ----------
        units : sequence of J float arrays, shapes (L_j, D)
        weights : array-like, shape (J,), or None
            One weight a client for the mean; None: all equal.
        prior_mean, orders, seed
            Ignored; they belong to the interface.

        Returns
        -------
        Matching
            Global units are their members' (weighted) means.

        Raises
        ------
        ValueError
            As :meth:`BBPMAP.match`, and if there are other clients or other widths than in
            `assignments`, or more global units than `max_width`.
        """
        arrays = check_units(units)
        check_max_width(self.max_width, arrays)
        mass = check_weights(weights, len(arrays))
        ours, theirs = ([len(rows) for rows in group] for group in (arrays, self.assignments))
        if ours != theirs:
            raise ValueError(f"units: the clients have {ours} units, the saved matching {theirs}")
        if self.max_width is not None and self.width > self.max_width:
            raise ValueError(
                f"max_width: {self.max_width}, the saved matching has {self.width} global units"
            )
        popularity = np.bincount(np.concatenate(self.assignments))
        mean = average_members(arrays, self.assignments, self.width, mass)
        objective = self.objective
        if objective is None:
            plain = average_members(arrays, self.assignments, self.width)
            objective = float((popularity**2 / (1 + popularity) * (plain**2).sum(1)).sum())
        return Matching(self.assignments, mean, popularity, objective, self.sweeps)


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
