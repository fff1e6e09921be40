"""The scale-free defaults on planted units, at every size and scale that is promised."""

import numpy as np
import pytest

from fedma_flwr.matching import BBPMAP


def plant(clients, width, size, *, unit_norm=False, held=(1.0, 1.0), seed=0):
    """Shared units plus a tenth of each client's own, noise 0.2 of the units' std, permuted."""
    rng = np.random.default_rng([seed, clients, width, size])
    own = round(0.1 * width)
    shared = rng.normal(size=(width - own, size))
    units, truth = [], []
    for client in range(clients):
        kept = rng.choice(len(shared), max(2, int(rng.uniform(*held) * len(shared))), replace=False)
        true = np.r_[kept, width + client * own + np.arange(own)]
        rows = np.vstack([shared[kept], rng.normal(size=(own, size))])
        rows += 0.2 * rng.normal(size=rows.shape)
        if unit_norm:
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        order = rng.permutation(len(rows))
        units.append(rows[order].astype(np.float32))
        truth.append(true[order])
    return units, truth


def pairs(labels):
    counts = np.unique(labels, return_counts=True)[1]
    return float((counts * (counts - 1)).sum())


def assert_found(matching, truth):
    found, true = np.concatenate(matching.assignments), np.concatenate(truth)
    both = pairs(found * (true.max() + 1) + true)
    assert both >= 0.99 * pairs(found), "precision"
    assert both >= 0.99 * pairs(true), "recall"
    width = len(np.unique(true))
    assert abs(matching.width - width) <= max(1, 0.01 * width)


@pytest.mark.parametrize("unit_norm", [False, True])
@pytest.mark.parametrize("held", [(1.0, 1.0), (0.5, 1.0), (0.3, 0.8)])
@pytest.mark.parametrize(
    ("clients", "width", "size"),
    [(2, 20, 30), (2, 200, 100), (3, 20, 800), (8, 64, 30), (16, 100, 200), (64, 20, 30)],
)
def test_planted_units_are_found(clients, width, size, held, unit_norm):
    units, truth = plant(clients, width, size, held=held, unit_norm=unit_norm)
    assert_found(BBPMAP().match(units), truth)


def test_many_clients_with_wide_layers_and_short_signatures():
    units, truth = plant(48, 120, 30, unit_norm=True)
    assert_found(BBPMAP().match(units), truth)


@pytest.mark.parametrize("scale", [1e-4, 0.03, 17.0, 1e4])
@pytest.mark.parametrize("structured", [True, False])
def test_the_scale_of_the_units_does_not_matter(scale, structured):
    units, _ = plant(5, 30, 40)
    if not structured:
        rng = np.random.default_rng(1)
        units = [rng.normal(size=(20, 26)) for _ in range(5)]
    matching = BBPMAP().match(units, seed=1)
    scaled = BBPMAP().match([scale * rows for rows in units], seed=1)
    for a, b in zip(matching.assignments, scaled.assignments, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("clients", [2, 7, 64])
@pytest.mark.parametrize(("width", "size"), [(1, 1), (5, 6), (40, 30)])
def test_identical_clients_give_no_new_unit(clients, width, size):
    rows = np.random.default_rng(0).normal(size=(width, size))
    matching = BBPMAP().match([rows] * clients)
    assert matching.width == width
    assert (matching.popularity == clients).all()
    np.testing.assert_allclose(matching.units[matching.assignments[0]], rows, atol=1e-12)


def test_permuted_identical_clients_are_aligned():
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(25, 12))
    orders = [rng.permutation(25) for _ in range(6)]
    matching = BBPMAP().match([rows[order] for order in orders])
    assert matching.width == 25
    for order, assignment in zip(orders, matching.assignments, strict=True):
        np.testing.assert_allclose(matching.units[assignment], rows[order], atol=1e-12)


@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("matcher", [BBPMAP(), BBPMAP.reference(1.0, 1e-16, 1e-2)])
def test_near_duplicates_stay_apart(matcher, offset):
    """Twins a millionth apart are told apart, even far away from the origin."""
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(10, 20))
    rows = offset + np.vstack([rows, rows + 1e-6 * rng.normal(size=rows.shape)])
    orders = [rng.permutation(20) for _ in range(4)]
    matching = matcher.match([rows[order] for order in orders], prior_mean=offset)
    assert matching.width == 20
    for order, assignment in zip(orders, matching.assignments, strict=True):
        np.testing.assert_array_equal(assignment[np.argsort(order)], np.argsort(orders[0]))


def test_gamma_moves_the_line_between_merging_and_growing():
    rng = np.random.default_rng(4)
    units = [rng.normal(size=(20, 26)) for _ in range(6)]
    widths = [BBPMAP(gamma=gamma).match(units).width for gamma in (0.01, 0.5, 2.0, 100.0)]
    assert widths == sorted(widths)
    assert widths[0] == 20
    assert widths[-1] == 120


def unrelated(clients, width, size):
    return [np.random.default_rng(k).normal(size=(width, size)) for k in range(clients)]


@pytest.mark.parametrize("size", [100, 400])
@pytest.mark.parametrize(("clients", "growth"), [(2, 0.05), (10, 0.25), (20, 0.4)])
def test_where_nothing_tells_units_apart_gamma_is_the_growth(clients, growth, size):
    """As the docstring says: so much at 1, about twice as much at 2."""
    units = unrelated(clients, 120, size)
    found = [BBPMAP(gamma=gamma).match(units).width / 120 - 1 for gamma in (1.0, 2.0)]
    assert found[0] == pytest.approx(growth, rel=0.3)
    assert found[1] == pytest.approx(2 * found[0], rel=0.3)


def test_units_that_nothing_tells_apart_go_where_they_fit_best():
    """Growth sends no unit to a worse place: opposed units are the ones that get a new one."""
    units = unrelated(10, 60, 80)
    matching = BBPMAP().match(units)
    nearness = [
        float(row @ (matching.units[unit] - row / matching.popularity[unit]))
        for rows, assignment in zip(units, matching.assignments, strict=True)
        for row, unit in zip(rows, assignment, strict=True)
        if matching.popularity[unit] > 1
    ]
    assert np.mean(np.array(nearness) > 0) > 0.99
