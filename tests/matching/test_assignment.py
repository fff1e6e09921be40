"""The reduction of the assignment problem, and its solvers."""

from importlib.util import find_spec

import numpy as np
import pytest

from fedma_flwr.matching import BBPMAP
from fedma_flwr.matching.assignment import assign, guess, improve, reassign, solve
from fedma_flwr.matching.assignment_problem import NEW, Problem

BACKENDS = ["auto", "scipy"] + (["lapx"] if find_spec("lap") else [])


def total(columns, existing, new, prices):
    rows = np.arange(len(columns))
    opened = columns == NEW
    assert len(set(columns[~opened])) == (~opened).sum()
    kept = existing[rows[~opened], columns[~opened]].sum()
    return kept + new[opened].sum() - prices[: opened.sum()].sum()


def full_optimum(existing, new, prices):
    cost = np.hstack([-existing, prices - new[:, None]])
    return -cost[np.arange(len(new)), solve(cost)].sum()


def test_what_ties_stays_and_what_gains_moves():
    existing = np.array([[2.0, 3.0, 0.0], [4.0, 5.0, 0.0], [0.0, 0.0, 1.0]])
    problem = Problem(existing, np.zeros(3), np.full(3, 9.0))
    rows = np.arange(2)
    for columns in ([0, 1, 2], [1, 0, 2]):  # both gain 7 + 1
        assert improve(problem, np.array(columns), rows).tolist() == columns
    existing[0, 0] = 2.5
    assert improve(problem, np.array([1, 0, 2]), rows).tolist() == [0, 1, 2]


def test_a_guess_gives_rows_what_nobody_else_likes_and_assigns_the_others():
    """A new unit would suit the last row better; the first two like the same one."""
    existing = np.array([[5.0, 4.0, 0.0], [6.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    problem = Problem(existing, np.array([0.0, 0.0, 9.0]), np.array([1.0, 1.0, 1.0]))
    assert guess(problem).tolist() == [1, 0, 2]
    assert assign(problem).tolist() == [1, 0, NEW]


def test_ties_are_judged_by_the_size_of_the_totals():
    """Totals of 2e6 that differ by 1e-7 are equal, those that differ by 1e-5 are not."""
    for gained, found in ((1e-7, [1, 0]), (1e-5, [0, 1])):
        problem = Problem(np.array([[1e6, 1e6], [1e6, 1e6 + gained]]), np.zeros(2), np.full(2, 9.0))
        assert improve(problem, np.array([1, 0]), np.arange(2)).tolist() == found
    nothing = Problem(np.zeros((2, 2)), np.zeros(2), np.full(2, 9.0))
    for columns in ([0, 1], [1, 0]):
        assert improve(nothing, np.array(columns), np.arange(2)).tolist() == columns


def test_new_units_are_left_for_what_they_cost():
    """A new unit gains 2 and costs 3; the unit gains 1."""
    problem = Problem(np.array([[1.0]]), np.array([2.0]), np.array([3.0]))
    assert improve(problem, np.array([NEW]), np.array([0])).tolist() == [0]
    assert improve(problem, np.array([0]), np.array([0])).tolist() == [0]
    cheap = problem._replace(prices=np.array([0.5]))
    assert improve(cheap, np.array([0]), np.array([0])).tolist() == [NEW]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_column_that_is_no_unit_is_nobodys(backend):
    existing = np.array([[-np.inf, 1.0, 0.5], [-np.inf, 2.0, 0.5]])
    for price in (-5.0, 0.0, 5.0):  # new units are cheap, or dear
        problem = Problem(existing, np.zeros(2), price + np.arange(2.0))
        moved = reassign(problem, np.array([2, 1]), np.arange(2), backend)
        assert 0 not in moved
        assert moved.tolist() == ([NEW, NEW] if price == -5.0 else [2, 1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("expected", [0, 3, 50])
@pytest.mark.parametrize("shift", [-10.0, -1.0, 0.0, 1.0, 10.0])
def test_the_reduced_problem_has_the_full_problems_optimum(backend, expected, shift):
    rng = np.random.default_rng(0)
    for _ in range(30):
        rows, width = rng.integers(1, 12, size=2)
        existing = rng.normal(size=(rows, width)) * rng.choice([0.3, 3.0])
        new = shift + rng.normal(size=rows)
        slots = rng.integers(max(rows - width, 1), rows + 1)
        prices = 2 * np.log(np.arange(1, slots + 1)) - rng.normal()
        columns = assign(Problem(existing, new, prices), backend, expected)
        assert (columns == NEW).sum() <= slots
        optimum = full_optimum(existing, new, prices)
        assert total(columns, existing, new, prices) == pytest.approx(optimum, abs=1e-9)


def test_no_new_unit_may_be_opened():
    existing = np.array([[1.0, 5.0, 2.0], [0.0, 9.0, 3.0]])
    assert assign(Problem(existing, np.full(2, 100.0), np.empty(0))).tolist() == [2, 1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_gives_the_same_matching(backend):
    rng = np.random.default_rng(1)
    units = [rng.normal(size=(width, 10)) for width in (12, 9, 15, 4)]
    ours = BBPMAP.reference(backend=backend).match(units)
    scipy = BBPMAP.reference(backend="scipy").match(units)
    for a, b in zip(ours.assignments, scipy.assignments, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_missing_backend_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("fedma_flwr.matching.assignment.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install lapx"):
        BBPMAP(backend="lapx")
    with pytest.raises(ValueError, match=r"lapsolver.*Python 3\.10"):
        BBPMAP(backend="lapsolver")
