"""The certificate of optimality, and products in float32 that it makes safe."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedma_flwr.matching import BBPMAP, products, search
from fedma_flwr.matching.assignment import assign, reassign, solve
from fedma_flwr.matching.assignment_problem import NEW, Problem
from fedma_flwr.matching.certificate import best_elsewhere, judge


def total(columns, existing, new, prices):
    kept = np.flatnonzero(columns != NEW)
    opened = columns == NEW
    gained = existing[kept, columns[kept]].sum() + new[opened].sum()
    return gained - prices[: opened.sum()].sum()


def optimum(existing, new, prices):
    cost = np.hstack([-existing, prices - new[:, None]])
    return -cost[np.arange(len(new)), solve(cost)].sum()


def anything(problem, rng):
    opened = np.full(len(problem.prices), NEW)
    slots = np.append(np.arange(problem.existing.shape[1]), opened)
    return rng.permutation(slots)[: len(problem.new)]


@st.composite
def problems(draw):
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    rows, width = draw(st.integers(1, 9)), draw(st.integers(0, 9))
    # Few distinct values: ties are common.
    levels = draw(st.sampled_from([3, 1000]))
    existing = rng.integers(levels, size=(rows, width)) * (3.0 / levels)
    new = rng.integers(levels, size=rows) * (3.0 / levels)
    new += draw(st.sampled_from([-2.0, 0.0, 2.0]))
    prices = np.cumsum(rng.random(draw(st.integers(max(rows - width, 0), rows)))) - 0.5
    return Problem(existing, new, prices), rng


@settings(max_examples=200, deadline=None, derandomize=True)
@given(problems(), st.booleans())
def test_the_best_assignment_is_certified_and_no_other(drawn, hint):
    problem, rng = drawn
    best = assign(problem)
    bidders = np.flatnonzero(rng.random(len(problem.new)) < 0.5) if hint else None
    before = problem.existing.copy()
    # A bidder that is none costs time only.
    assert not len(judge(problem, best, -1e-9, bidders).doubt)

    other = anything(problem, rng)
    worse = total(best, *problem) - total(other, *problem)
    if worse > 1e-6:
        assert len(judge(problem, other).doubt)
    np.testing.assert_array_equal(problem.existing, before)


@pytest.mark.parametrize("seed", range(20))
def test_knowing_what_rows_gain_elsewhere_changes_no_verdict(seed):
    rng = np.random.default_rng(seed)
    existing = rng.random((50, 60)) + 2 * np.eye(50, 60) * (rng.random((50, 1)) < 0.8)
    problem = Problem(existing, rng.random(50) - 0.5, 0.1 * np.arange(50))
    best = assign(problem)
    for columns in (best, anything(problem, rng)):
        bidders = np.flatnonzero(rng.random(50) < 0.3)
        found = best_elsewhere(existing, columns)
        others = np.arange(60) != columns[:, None]
        np.testing.assert_array_equal(found, np.where(others, existing, -np.inf).max(1))
        doubt = judge(problem, columns, -1e-9, bidders, elsewhere=found).doubt
        assert (len(doubt) == 0) == (columns is best)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(problems())
def test_a_certificate_with_slack_holds_for_all_gains_within_it(drawn):
    problem = drawn[0]
    columns = assign(problem)
    slack = 0.4
    if len(judge(problem, columns, slack).doubt):
        return
    lower = problem.existing.copy()
    held = np.flatnonzero(columns != NEW)
    lower[held, columns[held]] -= slack
    assert total(columns, lower, *problem[1:]) >= optimum(lower, *problem[1:]) - 1e-9


@settings(max_examples=100, deadline=None, derandomize=True)
@given(problems())
def test_moving_all_rows_is_assigning_and_moving_none_is_staying(drawn):
    problem, rng = drawn
    columns = anything(problem, rng)
    anew = reassign(problem, columns, np.arange(len(problem.new)))
    assert total(anew, *problem) == pytest.approx(optimum(*problem))
    np.testing.assert_array_equal(reassign(problem, columns, np.empty(0, dtype=np.int64)), columns)


def test_near_duplicates_stay_apart_in_single_precision():
    """Rows 1e-6 apart, below what a float32 product of their length can tell."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(12, 400))
    shared[6:] = shared[:6] + 1e-6 * rng.normal(size=(6, 400))
    orders = [rng.permutation(12) for _ in range(4)]
    units = [shared[order] for order in orders]
    matching = BBPMAP.reference(gamma=1e-3, sweeps=2).match(units)
    found = [a[np.argsort(o)] for a, o in zip(matching.assignments, orders, strict=True)]
    for assignment in found[1:]:
        np.testing.assert_array_equal(assignment, found[0])


@pytest.mark.parametrize("movable", [0.25, 1.0])
@pytest.mark.parametrize("noise", [0.05, 0.5, 2.0])
def test_single_precision_gives_the_assignments_of_double(monkeypatch, noise, movable):
    monkeypatch.setattr(search, "_MOVABLE", movable)
    rng = np.random.default_rng(1)
    shared = rng.normal(size=(40, 300)) / np.sqrt(300)
    units = [
        (rng.permutation(shared)[:w] + noise * rng.normal(size=(w, 300)) / np.sqrt(300)).astype(
            np.float32
        )
        for w in (40, 33, 40, 25, 38)
    ]
    single = BBPMAP.reference().match(units)
    monkeypatch.setattr(products, "_LONG", 10**6)
    double = BBPMAP.reference().match(units)
    assert single.objective == pytest.approx(double.objective, rel=1e-12)
    for ours, exact in zip(single.assignments, double.assignments, strict=True):
        np.testing.assert_array_equal(ours, exact)


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e18, 1e30])
def test_units_out_of_float32s_range_are_matched_as_any_others(scale):
    rng = np.random.default_rng(2)
    units = [rng.normal(size=(12, 300)) for _ in range(4)]
    usual = BBPMAP().match(units)
    for a, b in zip(
        usual.assignments, BBPMAP().match([scale * u for u in units]).assignments, strict=True
    ):
        np.testing.assert_array_equal(a, b)
