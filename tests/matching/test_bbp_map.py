"""The public interface: output, options, and wrong input."""

import dataclasses

import numpy as np
import pytest

from fedma_flwr.matching import BBPMAP, IdentityMatching, Matcher, search
from fedma_flwr.matching.validate import check_units


def units_of(widths, size=8, seed=0):
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(max(widths), size))
    return [
        rng.permutation(shared)[:width] + 0.1 * rng.normal(size=(width, size)) for width in widths
    ]


def test_two_clients_by_hand():
    left, right = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[0.0, 3.0], [1.0, 0.0]])
    matcher = BBPMAP(local_variance=1.0, prior_variance=1.0, gamma=1e-3)

    matching = matcher.match([left, right], prior_mean=0.0)

    assert [a.tolist() for a in matching.assignments] == [[0, 1], [1, 0]]
    np.testing.assert_allclose(matching.units, [[1.0, 0.0], [0.0, 2.0]])
    # Posterior: sums (2, 0) and (0, 4) over precision 1 + 2.
    assert matching.objective == pytest.approx(4 / 3 + 16 / 3)
    posterior = dataclasses.replace(matcher, output="posterior").match([left, right], 0.0)
    np.testing.assert_allclose(posterior.units, [[2 / 3, 0.0], [0.0, 4 / 3]])


def test_weights_change_the_mean_and_not_the_assignments():
    rows = np.arange(6.0).reshape(3, 2) * 10
    clients = [rows, rows[::-1] + 1.0]
    plain, weighted = BBPMAP().match(clients), BBPMAP().match(clients, weights=[3.0, 1.0])
    for a, b in zip(plain.assignments, weighted.assignments, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(weighted.units[weighted.assignments[0]], rows + 0.25)
    np.testing.assert_allclose(plain.units[plain.assignments[0]], rows + 0.5)


def test_the_same_seed_gives_the_same_result_and_input_stays_as_it_is():
    units = units_of([5, 9, 7])
    copies = [rows.copy() for rows in units]
    first, second = BBPMAP().match(units, seed=5), BBPMAP().match(units, seed=5)
    np.testing.assert_array_equal(first.units, second.units)
    for rows, copy in zip(units, copies, strict=True):
        np.testing.assert_array_equal(rows, copy)


@pytest.mark.parametrize("matcher", [BBPMAP(), BBPMAP.reference(), BBPMAP.learned()])
def test_max_width_is_kept(matcher):
    units = [*units_of([4, 6, 5, 6]), np.random.default_rng(9).normal(size=(6, 8)) + 4]
    limited = dataclasses.replace(matcher, max_width=6).match(units)
    assert limited.width == 6
    assert all(len(set(a.tolist())) == len(a) for a in limited.assignments)
    assert dataclasses.replace(matcher, max_width=8).match(units).width <= 8


def test_no_unit_is_dropped_where_the_reference_runs_out_of_columns():
    rng = np.random.default_rng(0)
    units = [rng.normal(size=(width, 3)).astype(np.float32) for width in (800, 10)]
    matching = BBPMAP.reference(sweeps=1).match(units)
    for assignment, rows in zip(matching.assignments, units, strict=True):
        assert len(np.unique(assignment)) == len(rows)
        assert assignment.min() >= 0


@pytest.mark.parametrize("matcher", [BBPMAP(), BBPMAP.reference(gamma=2.0), BBPMAP.learned()])
@pytest.mark.parametrize("seed", range(4))
def test_stopping_early_gives_the_same_units_and_numbers(monkeypatch, matcher, seed):
    rng = np.random.default_rng(seed)
    units = [*units_of([6, 9, 7], seed=seed), rng.normal(size=(5, 8)), rng.normal(size=(3, 8))]
    matcher = dataclasses.replace(matcher, sweeps=8)
    stopped = matcher.match(units, seed=seed)
    monkeypatch.setattr(search, "any", lambda moved: True, raising=False)
    complete = matcher.match(units, seed=seed)
    assert stopped.sweeps < complete.sweeps == 8
    for a, b in zip(stopped.assignments, complete.assignments, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(stopped.units, complete.units, atol=1e-12)


def test_one_client_with_one_unit_keeps_it():
    matching = BBPMAP().match([[[2.0, 3.0]]])
    assert matching.assignments[0].tolist() == [0]
    np.testing.assert_allclose(matching.units, [[2.0, 3.0]])


@pytest.mark.filterwarnings("error")
def test_one_client_keeps_all_units_without_a_warning():
    rows = np.random.default_rng(0).standard_normal((40, 300)).astype(np.float32)
    assert BBPMAP.reference().match([rows]).assignments[0].tolist() == list(range(40))


def test_identity_matching_averages_by_index():
    matcher: Matcher = IdentityMatching()
    matching = matcher.match([np.ones((2, 3)), 4 * np.ones((3, 3))], weights=[1.0, 2.0], seed=1)
    assert [a.tolist() for a in matching.assignments] == [[0, 1], [0, 1, 2]]
    assert matching.popularity.tolist() == [2, 2, 1]
    np.testing.assert_allclose(matching.units[:, 0], [3.0, 3.0, 4.0])
    # sums 5, 5, 4 in each of three dimensions over 1 + popularity
    assert matching.objective == pytest.approx(3 * (25 / 3 + 25 / 3 + 16 / 2))
    assert dataclasses.replace(matcher, max_width=3).match([np.ones((3, 1))]).width == 3


GOOD = [np.ones((2, 3)), np.ones((4, 3))]
BAD_UNITS = [
    ([], r"at least one client"),
    ([np.ones((2, 3)), np.ones((2, 4))], r"client 1 has shape \(2, 4\)"),
    ([np.ones((2, 3)), np.ones(3)], r"client 1 has shape \(3,\)"),
    ([np.ones((2, 3)), np.ones((0, 3))], r"client 1 has shape \(0, 3\)"),
    ([np.ones((2, 3)), np.full((1, 3), np.nan)], r"client 1, shape \(1, 3\), has NaN"),
    ([np.array([[1.0, 2.0], [np.nan, 3.0]])], r"client 0, shape \(2, 2\), has NaN"),
    ([np.full((2, 3), np.inf)], r"client 0, shape \(2, 3\), has NaN or infinity"),
    ([np.array([["a", "b"]])], r"client 0, shape \(1, 2\), has dtype"),
]


@pytest.mark.parametrize("matcher", [BBPMAP(), IdentityMatching()])
@pytest.mark.parametrize(("units", "message"), BAD_UNITS)
def test_bad_units_are_refused(matcher, units, message):
    with pytest.raises(ValueError, match=message):
        matcher.match(units)


def test_units_whose_squares_overflow_are_taken():
    assert check_units([np.full((2, 3), 1e200)])[0].tolist() == [[1e200] * 3] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 0.0}, "gamma: 0.0"),
        ({"gamma": float("nan")}, "gamma: nan"),
        ({"local_variance": -1.0, "prior_variance": 1.0}, "local_variance: -1.0"),
        ({"local_variance": 1.0, "prior_variance": 0.0}, "prior_variance: 0.0"),
        ({"local_variance": 1.0}, "expected both or none"),
        ({"fit": True}, "fit: needs local_variance"),
        ({"sweeps": -1}, "sweeps: -1"),
        ({"output": "median"}, "output: 'median'"),
        ({"backend": "magic"}, "backend: 'magic'"),
        ({"default_prior_mean": "one"}, "default_prior_mean: 'one'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BBPMAP(**options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"orders": [[0, 0]] * 5}, r"sweep 0 is \[0, 0\]"),
        ({"orders": [[0, 1]] * 4}, r"orders: expected shape \(5, 2\)"),
        ({"weights": [1.0]}, r"weights: expected shape \(2,\)"),
        ({"weights": [1.0, -1.0]}, r"weights: client 1 has -1.0"),
        ({"weights": [0.0, 1.0]}, r"weights: client 0 has 0.0"),
        ({"weights": [1.0, np.inf]}, r"weights: client 1 has inf"),
        ({"prior_mean": [1.0, 2.0]}, r"prior_mean: .* shape \(2,\)"),
        ({"prior_mean": np.nan}, r"prior_mean: expected a finite"),
        ({"prior_mean": [0.0, np.nan, 0.0]}, r"prior_mean: expected a finite"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        BBPMAP().match(GOOD, **arguments)


def test_max_width_below_the_widest_client_is_refused():
    for matcher in (BBPMAP(max_width=3), IdentityMatching(max_width=3)):
        with pytest.raises(ValueError, match=r"max_width: 3 is below client 1, .* \(4, 3\)"):
            matcher.match(GOOD)


def test_the_posterior_takes_no_weights():
    with pytest.raises(ValueError, match="weights: only output"):
        BBPMAP.reference().match(GOOD, weights=[1.0, 1.0])
