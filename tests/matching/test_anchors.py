"""Cohorts larger than the anchors: matched one by one, as well as jointly, and let go."""

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest

from fedma_flwr.matching import BBPMAP
from fedma_flwr.matching.arrays import UnitsOnDemand
from fedma_flwr.matching.checking import check_matching

CLIENTS, WIDTH, SIZE = 60, 16, 80
MATCHERS = [BBPMAP(), BBPMAP(gamma=1.0, local_variance=1.0, prior_variance=1.0)]
IDS = ["calibrated", "given"]


def planted(rng, clients=CLIENTS, spread=0.05):
    """The same units for all, each client's in an order of its own: units and these orders."""
    shared = rng.normal(size=(WIDTH, SIZE))
    orders = [rng.permutation(WIDTH) for _ in range(clients)]
    units = [shared[order] + spread * rng.normal(size=(WIDTH, SIZE)) for order in orders]
    return units, orders


def unexplained(units, assignments):
    """What members differ from their global units' means, squared and summed: the slow way."""
    places = {}
    for rows, assignment in zip(units, assignments, strict=True):
        for row, place in zip(rows, assignment, strict=True):
            places.setdefault(int(place), []).append(row)
    return sum(float(((np.stack(rows) - np.mean(rows, 0)) ** 2).sum()) for rows in places.values())


@pytest.mark.parametrize("matcher", MATCHERS, ids=IDS)
def test_cohorts_of_as_many_clients_as_anchors_are_matched_as_ever(matcher):
    units = [np.random.default_rng(k).normal(size=(WIDTH, SIZE)) for k in range(12)]
    few, many = (replace(matcher, anchors=a).match(units) for a in (12, 1000))
    assert all((a == b).all() for a, b in zip(few.assignments, many.assignments, strict=True))
    assert (few.units == many.units).all()
    assert few.objective == many.objective


@pytest.mark.parametrize("matcher", MATCHERS, ids=IDS)
@pytest.mark.parametrize("anchors", [1, 5])
def test_what_all_clients_share_is_found(matcher, anchors):
    units, orders = planted(np.random.default_rng(0))
    matching = replace(matcher, anchors=anchors).match(units)
    check_matching(matching, [WIDTH] * CLIENTS, None)
    assert matching.width == WIDTH
    assert (matching.popularity == CLIENTS).all()
    first = matching.assignments[0][np.argsort(orders[0])]
    for assignment, order in zip(matching.assignments, orders, strict=True):
        assert (assignment[np.argsort(order)] == first).all()
    assert np.allclose(
        matching.units[first],
        np.mean([u[np.argsort(o)] for u, o in zip(units, orders, strict=True)], 0),
    )


@pytest.mark.parametrize("matcher", MATCHERS, ids=IDS)
def test_of_noise_it_explains_nearly_as_much_as_joint_matching(matcher):
    rng = np.random.default_rng(1)
    units = [rng.normal(size=(WIDTH, SIZE)) / SIZE**0.5 for _ in range(CLIENTS)]
    jointly = replace(matcher, anchors=CLIENTS).match(units)
    anchored = replace(matcher, anchors=16).match(units)
    random = unexplained(units, [rng.permutation(WIDTH) for _ in units])
    best, found = (random - unexplained(units, m.assignments) for m in (jointly, anchored))
    assert anchored.width == jointly.width
    assert found > 0.9 * best


def test_whoever_comes_later_may_bring_units_of_its_own():
    units, _ = planted(np.random.default_rng(2))
    own = np.random.default_rng(3).normal(size=(3, SIZE))
    units[-1] = np.vstack([units[-1], own])
    matching = BBPMAP(anchors=8).match(units)
    assert matching.width == WIDTH + 3
    assert (matching.popularity[matching.assignments[-1][-3:]] == 1).all()
    assert np.allclose(matching.units[matching.assignments[-1][-3:]], own)
    assert BBPMAP(anchors=8).match(units, max_width=WIDTH + 3).width == WIDTH + 3


def test_widths_may_differ_and_the_limit_holds():
    rng = np.random.default_rng(4)
    units = [rng.normal(size=(int(rng.integers(3, WIDTH)), SIZE)) for _ in range(CLIENTS)]
    matching = BBPMAP(anchors=4).match(units, max_width=WIDTH)
    check_matching(matching, [len(rows) for rows in units], WIDTH)


def test_weights_count_in_the_means():
    units, _ = planted(np.random.default_rng(5), clients=9)
    weights = np.arange(1.0, 10.0)
    matching = BBPMAP(anchors=3).match(units, weights=weights)
    total = sum(
        w * u[np.argsort(a)] for w, u, a in zip(weights, units, matching.assignments, strict=True)
    )
    assert np.allclose(matching.units, total / weights.sum())


def test_no_more_clients_are_held_at_a_time_than_anchors_and_one():
    rng, living, most = np.random.default_rng(6), [], []

    def make(client):
        rows = rng.normal(size=(WIDTH, SIZE))
        living.append(weakref.ref(rows))
        gc.collect()
        most.append(sum(ref() is not None for ref in living))
        return rows

    for clients in (40, 80):
        living.clear(), most.clear()
        BBPMAP(anchors=8).match(UnitsOnDemand([WIDTH] * clients, make))
        assert len(most) == clients
        assert max(most) <= 8 + 2


def test_estimated_models_match_all_jointly():
    units, _ = planted(np.random.default_rng(7), clients=6)
    learned = BBPMAP.learned(gamma=1.0)
    few, all_ = (replace(learned, anchors=a).match(units) for a in (2, 6))
    assert (few.units == all_.units).all()


@pytest.mark.parametrize("client", [1, 7])
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (np.full((WIDTH, SIZE), np.nan), "NaN or infinity"),
        (np.ones((WIDTH, SIZE + 1)), "expected"),
        (np.full((WIDTH, SIZE), 1e90), "at most 1e"),
    ],
)
def test_wrong_units_are_named_wherever_they_come(client, wrong, words):
    units, _ = planted(np.random.default_rng(8), clients=9)
    units[client] = wrong
    with pytest.raises(ValueError, match=f"client {client}.*{words}"):
        BBPMAP(anchors=4).match(units)


@pytest.mark.parametrize("anchors", [0, -1, 2.0, True, None])
def test_anchors_that_are_no_number_of_clients_are_refused(anchors):
    with pytest.raises(ValueError, match=r"anchors: .*whole number >= 1"):
        BBPMAP(anchors=anchors)


def test_units_on_demand_are_a_sequence_that_keeps_nothing():
    made = []
    units = UnitsOnDemand([1, 2, 3], lambda k: made.append(k) or np.full((k + 1, 2), k))
    assert [len(rows) for rows in units] == list(units.widths) == [1, 2, 3]
    assert units[-1][0, 0] == 2
    assert [len(rows) for rows in units[:2]] == [1, 2]
    assert made == [0, 1, 2, 2, 0, 1]
    with pytest.raises(IndexError):
        units[3]
