"""Averaging without matching: the ablation of the matcher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .arrays import Floats
from .matcher import Matching, Output
from .saved_matching import matching_of
from .validate import check_max_width, check_units, check_weights


@dataclass(frozen=True)
class IdentityMatching:
    """Unit i of every client is global unit i: layer-wise averaging without matching.

    It is a :class:`Matcher`, so that it can be put in another's place to measure what matching
    is worth. Widths may differ; the global width is the widest client's.

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
    output: ClassVar[Output] = "mean"

    def match(
        self,
        units: Sequence[Floats],
        *,
        weights: Sequence[float] | Floats | None = None,
        max_width: int | None = None,
        seed: int = 0,
    ) -> Matching:
        """Match unit i with unit i; see :meth:`Matcher.match`.

        Returns
        -------
        Matching
            With the objective at zero prior mean and unit variances,
            ``sum_i |sum of members|^2 / (1 + popularity)``.
        """
        arrays = check_units(units)
        check_max_width(arrays, self.max_width, max_width)
        assignments = tuple(np.arange(len(array), dtype=np.int64) for array in arrays)
        return matching_of(arrays, assignments, check_weights(weights, len(arrays)))
