"""Averaging without matching: the ablation of the matcher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .result import Floats, Integers, Matching, average_members
from .validate import check_max_width, check_units, check_weights


@dataclass(frozen=True)
class IdentityMatching:
    """Unit i of every client is global unit i: layer-wise averaging without matching.

    It has the interface of :class:`BBPMAP`, so that it can be put in its place to measure what
    matching is worth. Widths may differ; the global width is the widest client's.

    Parameters
    ----------
    max_width : int or None (default: None)
        Accepted so that the two matchers are exchangeable; it never binds.

    Examples
    --------
    >>> import numpy as np
    >>> matching = IdentityMatching().match([np.ones((2, 3)), 3 * np.ones((1, 3))])
    >>> matching.units[:, 0].tolist(), matching.popularity.tolist()
    ([2.0, 1.0], [2, 1])
    """

    max_width: int | None = None

    def match(
        self,
        units: Sequence[Floats],
        prior_mean: float | Floats | None = None,
        weights: Sequence[float] | Floats | None = None,
        orders: Sequence[Sequence[int]] | Integers | None = None,
        seed: int = 0,
    ) -> Matching:
        """Match unit i with unit i.

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
            With the objective at zero prior mean and unit variances,
            ``sum_i |sum of members|^2 / (1 + popularity)``.

        Raises
        ------
        ValueError
            As :meth:`BBPMAP.match`.
        """
        arrays = check_units(units)
        check_max_width(self.max_width, arrays)
        mass = check_weights(weights, len(arrays))
        assignments = tuple(np.arange(len(array), dtype=np.int64) for array in arrays)
        width = max(len(array) for array in arrays)
        popularity = np.bincount(np.concatenate(assignments), minlength=width)
        mean = average_members(arrays, assignments, width)
        objective = float((popularity**2 / (1 + popularity) * (mean**2).sum(1)).sum())
        averaged = mean if mass is None else average_members(arrays, assignments, width, mass)
        return Matching(assignments, averaged, popularity, objective, sweeps=0)
