"""What a matcher is and what it returns."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from .arrays import Floats, Integers

Output = Literal["mean", "posterior"]


@dataclass(frozen=True, eq=False)
class Matching:
    """The units of several clients, matched to global units.

    Parameters
    ----------
    assignments : tuple of int arrays, shapes (L_j,)
        For every client: local unit -> global unit. No two units of one client share a
        global unit.
    units : float array, shape (L, D)
        The signatures of the global units.
    popularity : int array, shape (L,)
        How many clients use a global unit; never 0.
    objective : float
        ``sum_i |g_i|^2 / S_i``, the part of the posterior that BBP-MAP maximises (g_i and
        S_i: the global unit's natural parameters, section 1 of the PFNM paper's method).
    sweeps : int
        Sweeps really done after the first pass (the last one may have changed nothing).
    settled : int (default: 0)
        For how many updates of a client the matcher has settled for less than the best, as the
        work was too much; see :class:`BBPMAP`, ``effort``.

    Examples
    --------
    >>> import numpy as np
    >>> from fedma_flwr.matching import BBPMAP
    >>> shared = np.random.default_rng(0).normal(size=(20, 30))
    >>> matching = BBPMAP().match([shared, shared[::-1]])
    >>> bool((matching.assignments[0] == matching.assignments[1][::-1]).all())
    True
    >>> matching.width
    20
    """

    assignments: tuple[Integers, ...]
    units: Floats
    popularity: Integers
    objective: float
    sweeps: int
    settled: int = 0

    @property
    def width(self) -> int:
        """The number of global units, L."""
        return len(self.popularity)


class Matcher(Protocol):
    """Anything that maps the units of several clients to global units.

    Any class with this method and this attribute will do; nothing else is asked of it.
    """

    @property
    def output(self) -> str:
        """What a global unit is: its members' "mean", or the "posterior" mean.

        Posterior means weigh all clients alike, and assignments alone do not tell them.
        """
        ...

    def match(
        self,
        units: Sequence[Floats],
        *,
        weights: Sequence[float] | Floats | None = None,
        max_width: int | None = None,
        seed: int = 0,
    ) -> Matching:
        """Match the units of J clients.

        Parameters
        ----------
        units : sequence of J float arrays, shapes (L_j, D)
            One signature a row; widths may differ.
        weights : array-like, shape (J,), or None
            One weight a client for the members' mean; None: all equal. The assignments do not
            depend on it.
        max_width : int or None
            The largest global width, the widest client's or more; None: any.
        seed : int
            Of whatever is drawn at random.

        Returns
        -------
        Matching
            Global units of shape (L, D), and for every client where its units went.

        Raises
        ------
        ValueError
            It names the argument.
        """
        ...


def check_matcher(matcher: object) -> None:
    """Refuse what is no :class:`Matcher`, before anything is matched.

    Raises
    ------
    ValueError
        It names `matcher`, and what it lacks: a class in place of an instance, no method
        ``match``, one that cannot be called as it will be, or no ``output``.
    """
    if isinstance(matcher, type):
        name = matcher.__name__
        raise ValueError(f"matcher was the class {name}; it must be an instance: {name}(...).")
    match = getattr(matcher, "match", None)
    if not callable(match):
        raise ValueError(f"matcher was {matcher!r}, which has no method `match`.")
    try:
        with suppress(ValueError):  # a compiled method may tell no signature
            inspect.signature(match).bind([], weights=None, max_width=None, seed=0)
    except TypeError as error:
        raise ValueError(
            f"matcher was {matcher!r}, whose `match` must take (units, *, weights, max_width, "
            f"seed): {error}."
        ) from error
    output = getattr(matcher, "output", None)
    if output not in get_args(Output):
        raise ValueError(
            f"matcher was {matcher!r}, whose `output` is {output!r}; it must be 'mean', or "
            "'posterior' for posterior means."
        )
