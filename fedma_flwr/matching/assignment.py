"""The linear assignment problem of one update, its reduction and its solvers."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Literal

import numpy as np
import torch

from .arrays import Floats, Integers
from .assignment_problem import NEW, Problem
from .contested import Solver

Backend = Literal["auto", "scipy", "lapx", "lapsolver"]

_PRICE_TRIALS = 3
_TIE = 1e-12  # totals that differ by less than this part are equal


def assign(problem: Problem, backend: Backend | Solver = "auto", expected: int = 0) -> Integers:
    """Give every row an existing unit or a new one, at the largest total gain.

    New units differ only by their price, so all can be offered at one price ``p``: solve the
    n x L problem in which a row may also stay outside at ``p``. If m rows stay outside and
    ``prices[m - 1] <= p <= prices[m]``, this is the optimum of the full n x (L + K) problem,
    as the best total with exactly m new units is concave in m. A few prices are tried; then
    the full problem is solved.

    Parameters
    ----------
    problem : Problem
    backend : {"auto", "scipy", "lapx", "lapsolver"} or Solver (default: "auto")
        The solver; all are exact, but for a Solver that settles for less.
    expected : int (default: 0)
        A guess of how many units will be opened. The result does not depend on it (but where
        optima tie).

    Returns
    -------
    int array, shape (n,)
        An existing unit's index, or :data:`NEW`; no two rows share an existing unit.

    Examples
    --------
    >>> gains = np.array([[5.0, 0.0], [4.0, 0.0]])
    >>> assign(Problem(gains, new=np.array([3.0, 3.0]), prices=np.array([1.0, 2.0])))
    array([ 0, -1])
    """
    existing, new, prices = problem
    if existing.shape[1] == 0:
        return np.full(len(new), NEW)
    if len(prices) == 0:
        return solve(-existing, backend)
    guess = expected
    for _ in range(_PRICE_TRIALS):
        price = prices[min(max(guess, 1), len(prices)) - 1]
        columns = _assign_at(existing, new - price, backend)
        opened = int((columns == NEW).sum())
        if _is_certified(price, opened, prices):
            return columns
        # The number wanted lies between the guess and what this price opened.
        guess = opened if guess == expected else (guess + opened) // 2
    return _assign_in_full(new[:, None] - existing, prices, backend)


def guess(problem: Problem, backend: Backend | Solver = "auto", expected: int = 0) -> Integers:
    """Give rows what they like best where nobody else does, and assign only the others.

    Not always the best assignment, but where units are clearly one another's, it is, and most
    rows need no solver. Parameters and result are those of :func:`assign`.
    """
    likes = problem.existing.argmax(1)
    alone = np.bincount(likes, minlength=problem.existing.shape[1])[likes] == 1
    columns = np.where(alone, likes, NEW)
    return reassign(problem, columns, np.flatnonzero(~alone), backend, expected)


def reassign(
    problem: Problem,
    columns: Integers,
    rows: Integers,
    backend: Backend | Solver = "auto",
    expected: int | None = None,
) -> Integers:
    """Assign some rows anew, at the largest total gain while all others stay where they are.

    Parameters
    ----------
    problem : Problem
    columns : int array, shape (n,)
        The assignment so far.
    rows : int array
        The rows that may move.
    backend, expected
        As for :func:`assign`; by default as many units are expected to be opened as are now.

    Returns
    -------
    int array, shape (n,)
    """
    stay = np.ones(len(columns), dtype=bool)
    stay[rows] = False
    taken = columns[stay]
    free = problem.existing[:1].max(0, initial=-np.inf) > -np.inf
    free[taken[taken != NEW]] = False
    choices = np.flatnonzero(free)
    opened = int((taken == NEW).sum())
    if expected is None:
        expected = int((columns[rows] == NEW).sum())
    gains = problem.existing[np.ix_(rows, choices)]
    part = assign(Problem(gains, problem.new[rows], problem.prices[opened:]), backend, expected)
    moved = columns.copy()
    moved[rows] = np.append(choices, NEW)[part]
    return moved


def improve(
    problem: Problem, columns: Integers, rows: Integers, backend: Backend | Solver = "auto"
) -> Integers:
    """Assign some rows anew if that gains anything; parameters and result as for :func:`reassign`.

    What ties with ``columns`` does not take their place.
    """
    if not len(rows):
        return columns
    moved = reassign(problem, columns, rows, backend)
    before, after = (_total(problem, chosen, rows) for chosen in (columns, moved))
    return moved if after > before + _TIE * abs(before) else columns


def _total(problem: Problem, columns: Integers, rows: Integers) -> float:
    """Return some rows' gains less all new units' prices."""
    opened, chosen = columns[rows] == NEW, columns[rows]
    gains = np.where(opened, problem.new[rows], problem.existing[rows, chosen])
    return float(gains.sum() - problem.prices[: (columns == NEW).sum()].sum())


def _assign_at(existing: Floats, outside: Floats, backend: Backend | Solver) -> Integers:
    """Assign where every row may stay outside instead, for what that gains it."""
    rows, width = existing.shape
    # One outside column a row would be exact; columns of zeros are as good, and where there are
    # fewer units than rows only the difference is needed.
    cost = np.zeros((rows, max(rows, width)))
    joined = np.subtract(outside[:, None], existing, out=cost[:, :width])
    torch.from_numpy(joined).clamp_(max=0.0)  # numpy's minimum takes as long as the solver
    columns = solve(cost, backend, outside=0.0)
    return np.where(cost[np.arange(rows), columns] < 0, columns, NEW)


def _is_certified(price: float, opened: int, prices: Floats) -> bool:
    if opened > len(prices):
        return False
    below = opened == 0 or prices[opened - 1] <= price
    return bool(below and (opened == len(prices) or price <= prices[opened]))


def _assign_in_full(extra: Floats, prices: Floats, backend: Backend | Solver) -> Integers:
    rows, width = extra.shape
    cost = np.hstack([extra, np.broadcast_to(prices, (rows, len(prices)))])
    columns = solve(cost, backend, outside=float(prices[0]))
    return np.where(columns < width, columns, NEW)


def solve(cost: Floats, backend: Backend | Solver = "auto", outside: float = np.inf) -> Integers:
    """Return the column of every row at the least total cost.

    Parameters
    ----------
    cost : float array, shape (n, m), n <= m
    backend : {"auto", "scipy", "lapx", "lapsolver"} or Solver
        ``"auto"`` is scipy's solver.
    outside : float (default: infinity)
        Rows without a smaller cost than this want no column of their own.

    Returns
    -------
    int array, shape (n,)

    Raises
    ------
    ValueError
        The backend is unknown or not installed.
    """
    solver = backend if isinstance(backend, Solver) else solver_of(backend)
    return solver(np.ascontiguousarray(cost, dtype=np.float64), outside)


def solver_of(backend: Backend, effort: float = np.inf) -> Solver:
    """Return a backend's solver, with an account of the work: see :class:`Solver`."""
    return Solver(_SOLVERS[check_backend(backend)], effort)


def check_backend(backend: str) -> str:
    """Return the solver that a backend's name stands for, if it can be imported."""
    if backend == "auto":
        return "scipy"
    if backend not in _SOLVERS:
        raise ValueError(
            f"backend: {backend!r} is none of 'auto', {', '.join(map(repr, _SOLVERS))}"
        )
    if backend in _MODULES and find_spec(_MODULES[backend]) is None:
        raise ValueError(f"backend: {backend!r} is not installed ({_INSTALL[backend]})")
    return backend


def _scipy(cost: Floats) -> Integers:
    # Here: clients import this package with the rest, and never match.
    from scipy.optimize import linear_sum_assignment

    # With n <= m every row is assigned and the row indices come back sorted.
    columns: Integers = linear_sum_assignment(cost)[1]
    return columns


def _lapx(cost: Floats) -> Integers:
    from lap import lapjvr

    rows, columns = lapjvr(cost, extend_cost=True, return_cost=False)
    return _by_row(rows, columns)


def _lapsolver(cost: Floats) -> Integers:
    from lapsolver import solve_dense

    rows, columns = solve_dense(cost)
    return _by_row(rows, columns)


def _by_row(rows: Integers, columns: Integers) -> Integers:
    ordered = np.empty(len(rows), dtype=np.int64)
    ordered[rows] = columns
    return ordered


_SOLVERS: dict[str, Callable[[Floats], Integers]] = {
    "scipy": _scipy,
    "lapx": _lapx,
    "lapsolver": _lapsolver,
}
_MODULES = {"lapx": "lap", "lapsolver": "lapsolver"}
_INSTALL = {
    "lapx": "pip install lapx",
    "lapsolver": "pip install lapsolver, which has no wheels and does not build after Python 3.10",
}
