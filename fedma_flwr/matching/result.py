"""What a matcher is and what it returns."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Integers = NDArray[np.int64]
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


def average_members(
    units: Sequence[Floats],
    assignments: Sequence[Integers],
    width: int,
    weights: Floats | None = None,
) -> Floats:
    """Return the (weighted) mean of every global unit's members.

    Parameters
    ----------
    units : sequence of J float arrays, shapes (L_j, D)
    assignments : sequence of J int arrays, shapes (L_j,)
    width : int
        The number of global units, L.
    weights : float array, shape (J,), or None
        One weight a client; None: all equal.

    Returns
    -------
    float64 array, shape (L, D)
    """
    total = np.zeros((width, units[0].shape[1]))
    mass = np.zeros(width)
    for client, (rows, assignment) in enumerate(zip(units, assignments, strict=True)):
        weight = 1.0 if weights is None else float(weights[client])
        # Within one client the targets are distinct, so += meets every row once.
        total[assignment] += rows if weight == 1.0 else weight * rows
        mass[assignment] += weight
    return total / mass[:, None]


def mean_row(units: Sequence[Floats]) -> Floats:
    """Return the mean of all clients' rows, float64, shape (D,), without copying them."""
    total = np.zeros(units[0].shape[1])
    for array in units:
        total += array.sum(0)
    mean: Floats = total / sum(len(array) for array in units)
    return mean
