"""Refuse wrong input where it comes in, naming the client and the shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .arrays import Floats, Integers, mean_row, widths_of

#: Products of two sums of squares of such numbers are finite.
LARGEST = 1e70


def check_units(units: Sequence[Any]) -> list[Floats]:
    """Return the clients' units as float arrays of shapes (L_j, D).

    Raises
    ------
    ValueError
        No client, an array that is not (L_j, D) with L_j, D >= 1, different D, or a value that
        is NaN or infinite.
    """
    if len(units) == 0:
        raise ValueError("units: expected at least one client's array (L_j, D), got none")
    arrays = [check_client(units[0], 0)]
    arrays += [check_client(units[k], k, arrays[0]) for k in range(1, len(units))]
    return arrays


def check_client(units: Any, client: int, first: Floats | None = None) -> Floats:
    """Return one client's units as a float array; errors are those of `check_units`.

    Parameters
    ----------
    units : array-like, shape (L_j, D)
    client : int
        Its index, for the error.
    first : float array, shape (L_0, D), or None
        The first client's units, which all others must be as long as.
    """
    array = _as_floats(units, client)
    if first is not None and array.shape[1] != first.shape[1]:
        raise ValueError(
            f"units: client {client} has shape {array.shape}, expected (L_j, {first.shape[1]}) "
            f"as client 0 has shape {first.shape}"
        )
    # A sum of squares is finite only if all terms are, and costs no array of flags; the
    # slow test then decides whether it was merely an overflow.
    if not np.isfinite(np.vdot(array, array)) and not np.isfinite(array).all():
        raise ValueError(f"units: client {client}, shape {array.shape}, has NaN or infinity")
    return array


def check_sizes(arrays: list[Floats], start: int = 0) -> list[Floats]:
    """Refuse units whose squares could not be summed and multiplied; return the others.

    The first array is client number `start`'s.
    """
    for client, array in enumerate(arrays, start):
        with np.errstate(over="ignore"):
            small = np.vdot(array, array) <= LARGEST**2
        if not small and np.abs(array).max() > LARGEST:
            raise ValueError(
                f"units: client {client}, shape {array.shape}, has values up to "
                f"{np.abs(array).max():.3g}; at most {LARGEST:g} can be squared and multiplied: "
                "divide all clients' units by one number"
            )
    return arrays


def _as_floats(array: Any, client: int) -> Floats:
    floats = np.asarray(array)
    if floats.ndim != 2 or 0 in floats.shape:
        raise ValueError(
            f"units: client {client} has shape {floats.shape}, expected (L_j, D) with L_j, D >= 1"
        )
    if floats.dtype not in (np.float32, np.float64):
        try:
            floats = floats.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"units: client {client}, shape {floats.shape}, has dtype {floats.dtype}, "
                "expected floats"
            ) from error
    return np.ascontiguousarray(floats)


def check_positive(name: str, value: float | None) -> None:
    """Refuse a setting that is neither None nor a finite number > 0."""
    if value is not None and not 0 < value < np.inf:
        raise ValueError(f"{name}: {value!r}, expected a finite number > 0")


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """Refuse a setting that is none of those allowed."""
    if value not in allowed:
        raise ValueError(f"{name}: {value!r}, expected one of {', '.join(map(repr, allowed))}")


def check_prior_mean(prior_mean: Any, units: Sequence[Floats], default: str) -> Floats:
    """Return the prior mean as an array of shape (D,); scalars are repeated.

    None: zeros by default "zero", the mean of all rows by default "rows".
    """
    size = units[0].shape[1]
    if prior_mean is None:
        return np.zeros(size) if default == "zero" else mean_row(units)
    mean = np.asarray(prior_mean, dtype=np.float64)
    if mean.shape not in ((), (size,)) or not np.isfinite(mean).all():
        raise ValueError(
            f"prior_mean: expected a finite scalar or shape ({size},), got shape {mean.shape}"
        )
    return np.broadcast_to(mean, (size,)).copy()


def check_weights(weights: Any, clients: int) -> Floats | None:
    """Return the clients' weights as an array of shape (J,), all positive, or None."""
    if weights is None:
        return None
    array = np.asarray(weights, dtype=np.float64)
    if array.shape != (clients,):
        raise ValueError(f"weights: expected shape ({clients},), got {array.shape}")
    wrong = np.flatnonzero(~(np.isfinite(array) & (array > 0)))
    if len(wrong):
        raise ValueError(
            f"weights: client {wrong[0]} has {array[wrong[0]]}, expected finite and > 0"
        )
    return array


def check_orders(orders: Any, sweeps: int, clients: int, seed: int) -> Integers:
    """Return client orders of shape (sweeps, J), drawn from ``seed`` where None is given."""
    if orders is None:
        rng = np.random.default_rng(seed)
        drawn = [rng.permutation(clients) for _ in range(sweeps)]
        return np.array(drawn, dtype=np.int64).reshape(sweeps, clients)
    array = np.asarray(orders)
    if array.shape != (sweeps, clients):
        raise ValueError(f"orders: expected shape ({sweeps}, {clients}), got {array.shape}")
    for sweep, order in enumerate(array):
        if not np.array_equal(np.sort(order), np.arange(clients)):
            raise ValueError(
                f"orders: sweep {sweep} is {order.tolist()}, "
                f"not a permutation of the clients 0..{clients - 1}"
            )
    return array.astype(np.int64)


def check_max_width(units: Sequence[Floats], own: int | None, given: int | None) -> int | None:
    """Return the limit on the width: the one that ``match`` is given, else the matcher's own.

    Raises
    ------
    ValueError
        It is below the widest client.
    """
    max_width = own if given is None else given
    widths = widths_of(units)
    widest = max(range(len(widths)), key=widths.__getitem__)
    if max_width is not None and max_width < widths[widest]:
        raise ValueError(
            f"max_width: {max_width} is below client {widest}, which has shape "
            f"{units[widest].shape}"
        )
    return max_width


def check_variances(local: float | None, prior: float | None, *, fit: bool) -> None:
    """Refuse one variance without the other, and a fit that has none to start from.

    Raises
    ------
    ValueError
        It names the arguments.
    """
    if (local is None) != (prior is None):
        raise ValueError(f"local_variance, prior_variance: {local}, {prior}, expected both or none")
    if fit and local is None:
        raise ValueError("fit: needs local_variance and prior_variance to start from")


def check_anchors(anchors: Any) -> None:
    """Refuse what is no number of clients.

    Raises
    ------
    ValueError
        It names the argument.
    """
    if isinstance(anchors, bool) or not isinstance(anchors, int) or anchors < 1:
        raise ValueError(f"anchors: {anchors!r}, expected a whole number >= 1")


def check_effort(sweeps: int, threads: Any, effort: float) -> None:
    """Refuse a negative number of sweeps, no number of threads, and no or a negative effort.

    Raises
    ------
    ValueError
        It names the argument.
    """
    if sweeps < 0:
        raise ValueError(f"sweeps: {sweeps}, expected >= 0")
    whole = isinstance(threads, int) and not isinstance(threads, bool)
    if threads is not None and not (whole and threads >= 1):
        raise ValueError(f"threads: {threads!r}, expected None or a whole number >= 1")
    if not effort >= 0:
        raise ValueError(f"effort: {effort!r}, expected >= 0, or infinity for no bound")
