"""Many rows that want the same units: the solver's work is bounded, the result is not touched."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from fedma_flwr.matching import BBPMAP, check_matching
from fedma_flwr.matching.contested import SURPLUS, Solver

ROWS = 260


def exact(cost):
    return linear_sum_assignment(cost)[1]


class Counting:
    """The solver's own steps (shortest augmenting paths), counting the rows that it looks at."""

    def __init__(self):
        self.looks = 0

    def __call__(self, cost):
        rows, width = cost.shape
        dual, holder, column = np.zeros(width), np.full(width, -1), np.full(rows, -1)
        for start in range(rows):
            path, near, open_ = np.full(width, start), np.full(width, np.inf), np.ones(width, bool)
            row, least = start, 0.0
            own = 0.0
            seen = []
            while row >= 0:
                self.looks += 1
                through = least + cost[row] - dual - own
                better = open_ & (through < near)
                near[better], path[better] = through[better], row
                bound = np.where(open_, near, np.inf)
                ties = np.flatnonzero(bound == bound.min())
                sink = ties[np.argmin(holder[ties])]  # a free one first, as scipy's does
                least, row = near[sink], holder[sink]
                open_[sink] = False
                if row >= 0:
                    seen.append(sink)
                    own = cost[row, sink] - dual[sink]
            dual[seen] -= least - near[seen]
            while True:
                holder[sink] = path[sink]
                column[path[sink]], sink = sink, column[path[sink]]
                if holder[column[start]] == start and path[column[start]] == start and sink < 0:
                    break
        return column


def alike(rng):
    return np.tile(rng.normal(size=ROWS), (ROWS, 1))


def nearly_alike(rng):
    return rng.normal(size=ROWS) + 1e-9 * rng.normal(size=(ROWS, ROWS))


def ramp(rng):
    return np.outer(np.arange(ROWS), np.arange(ROWS)) / ROWS


def lengths(rng):
    return -rng.lognormal(size=(ROWS, 1)) * rng.lognormal(size=ROWS)


def ordinary(rng):
    return rng.normal(size=(ROWS, ROWS))


HOSTILE = [alike, nearly_alike, ramp, lengths]


def looks(cost, solver=None):
    count = Counting()
    (solver(count) if solver else count)(cost)
    return count.looks / len(cost)


@pytest.mark.parametrize("kind", [*HOSTILE, ordinary])
@pytest.mark.parametrize("wider", [0, 90])
def test_the_best_is_found(kind, wider):
    rng = np.random.default_rng(0)
    cost = np.hstack([kind(rng), 1 + rng.random(size=(ROWS, wider))])
    columns = Solver(exact)(cost)
    assert len(np.unique(columns)) == ROWS
    best = cost[np.arange(ROWS), exact(cost)].sum()
    np.testing.assert_allclose(cost[np.arange(ROWS), columns].sum(), best, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", [alike, nearly_alike, ramp])
def test_fewer_rows_are_looked_at_again(kind):
    cost = kind(np.random.default_rng(0))
    assert looks(cost) > 50
    assert looks(cost, Solver) < looks(cost) / 2


@pytest.mark.parametrize("surplus", [0, 1, 20])
def test_rows_with_their_favourite_come_first(surplus):
    # Everyone likes the next one's unit nearly as well, and some come before all others.
    cost = np.full((ROWS, ROWS), 9.0)
    steps = np.arange(ROWS)
    cost[steps, np.maximum(steps - surplus, 0)] = 0.0
    cost[steps, np.minimum(np.maximum(steps - surplus, 0) + 1, ROWS - 1)] = 1e-3
    assert looks(cost, Solver) <= 1 + surplus


def test_work_beyond_the_effort_is_settled_in_pieces():
    cost = ramp(None)
    solver = Solver(exact, effort=0.0)
    first, second = solver(cost), solver(cost)
    assert solver.settled == 1
    rows = np.arange(ROWS)
    best, found = (cost[rows, columns].sum() for columns in (first, second))
    assert len(np.unique(second)) == ROWS
    assert best <= found <= best + solver.gap + 1e-6
    assert found < cost.sum() / ROWS  # better than by chance


def test_what_is_settled_is_looked_at_less_than_a_piece_a_row():
    count = Counting()
    solver = Solver(count, effort=0.0)
    solver(ramp(None))
    before = count.looks
    solver(ramp(None))
    assert (count.looks - before) / ROWS <= 64


def clients(bad, rows=ROWS, clients=6, size=100):
    rng = np.random.default_rng(0)
    base = 0.1 * rng.normal(size=(rows, size))
    units = [base + 0.03 * rng.normal(size=base.shape) for _ in range(clients)]
    return units if bad is None else [*units[:-2], bad(rng, rows, size), bad(rng, rows, size)]


def wide_ramp(rng, rows, size):
    return np.outer(np.arange(1, 2 * rows + 1) / rows, np.ones(size)) * 9


def same_units(rng, rows, size):
    return 0.01 * np.tile(rng.normal(size=size), (rows, 1)) + 1e-9 * rng.normal(size=(rows, size))


@pytest.mark.parametrize("bad", [wide_ramp, same_units])
def test_matching_hostile_units_is_valid_and_repeatable(bad):
    units = clients(bad)
    matcher = BBPMAP(effort=0.0, max_width=2 * ROWS)
    matchings = [matcher.match(units, seed=3) for _ in range(2)]
    for matching in matchings:
        check_matching(matching, [len(rows) for rows in units], 2 * ROWS)
    assert matchings[0].settled == matchings[1].settled > 0
    for left, right in zip(*(m.assignments for m in matchings), strict=True):
        np.testing.assert_array_equal(left, right)


def test_honest_units_are_never_settled():
    assert BBPMAP().match(clients(None)).settled == 0
    rng = np.random.default_rng(1)
    unrelated = [rng.normal(size=(400, 40)) * rng.lognormal(size=(400, 1)) for _ in range(4)]
    bounded, free = (BBPMAP(effort=e).match(unrelated) for e in (16.0, np.inf))
    assert bounded.settled == 0
    assert bounded.objective == free.objective


@pytest.mark.parametrize("effort", [-1.0, float("nan")])
def test_an_effort_that_is_none_is_refused(effort):
    with pytest.raises(ValueError, match="effort"):
        BBPMAP(effort=effort)


def test_small_problems_and_small_surpluses_are_solved_as_they_are():
    seen = []
    solver = Solver(lambda cost: seen.append(cost) or exact(cost))
    cost = np.random.default_rng(0).normal(size=(SURPLUS, SURPLUS + 9))
    solver(cost[:60])
    solver(-np.eye(SURPLUS))
    assert [len(c) for c in seen] == [60, SURPLUS]
    np.testing.assert_array_equal(seen[0], cost[:60])
