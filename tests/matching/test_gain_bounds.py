"""Bounds on gains hold, and spare the products that they stand for."""

import numpy as np
import pytest
import torch

from fedma_flwr.matching import BBPMAP, products
from fedma_flwr.matching.assignment_problem import NEW
from fedma_flwr.matching.gain import ScalarGain
from fedma_flwr.matching.gain_bounds import GainBounds
from fedma_flwr.matching.global_units import GlobalUnits

CLIENTS = 5


def worth(popularity):
    return np.log(popularity / (CLIENTS + 1 - popularity))


def grouped(rng, noise):
    """Return global units in which row l of every client is unit l, but for a row of its own."""
    size = 30
    shared = rng.normal(size=(8, size)) * rng.uniform(0.2, 3.0, size=(8, 1))
    units = [shared + noise * rng.normal(size=shared.shape) for _ in range(CLIENTS)]
    global_units = GlobalUnits(units, np.zeros(size), torch.device("cpu"))
    for client in range(CLIENTS):
        global_units.take_out(client)
        columns = np.arange(8) if client else np.full(8, NEW)
        columns[client % 3] = NEW
        global_units.put_back(client, columns)
    return global_units, size


def columns_of(global_units, client):
    """Return where a client that is taken out was: numbers, NEW for units it held alone."""
    held = global_units.slots[client]
    return global_units.numbers(held, np.arange(len(held)))


def holds(global_units, gain, bounds, client):
    """Check a client's bounds against exact gains; return how many rows are bounded."""
    global_units.take_out(client)
    most, error, is_bounded, elsewhere = bounds.at(client)
    most, error = most[:, global_units.numbering].copy(), error[global_units.numbering]
    columns = columns_of(global_units, client)
    exact = gain(global_units, client).existing + worth(
        global_units.popularity[global_units.numbering]
    )
    rows = np.flatnonzero(is_bounded)
    assert (columns[rows] != NEW).all()
    least = most[rows, columns[rows]]
    most[rows, columns[rows]] = np.inf
    slack = 1e-9 * (1 + np.abs(exact))
    assert (most >= exact - slack).all()
    assert (least <= exact[rows, columns[rows]] + slack[rows, columns[rows]]).all()
    assert (exact[~is_bounded] >= most[~is_bounded] - error - slack[~is_bounded]).all()
    exact[rows, columns[rows]] = -np.inf
    assert (exact.max(1) <= elsewhere + slack.max(1)).all()
    return len(rows)


@pytest.mark.parametrize("log_determinant", [False, True])
@pytest.mark.parametrize("noise", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_bounds_hold_while_units_change(seed, noise, log_determinant):
    rng = np.random.default_rng(seed)
    global_units, size = grouped(rng, noise)
    gain = ScalarGain(rng.uniform(0.1, 2), 1.5, rng.normal(size=size) * (seed % 2), log_determinant)
    measured = [rng.random(8) < 0.2 for _ in range(CLIENTS)]
    for rows, slots in zip(measured, global_units.slots, strict=True):
        rows |= global_units.popularity[slots] == 1
    bounds = GainBounds(global_units, gain, worth, measured)
    bounded = []
    for client in [*rng.permutation(CLIENTS), *rng.permutation(CLIENTS)]:
        bounded.append(holds(global_units, gain, bounds, client))
        columns = columns_of(global_units, client)
        if rng.random() < 0.7:  # two rows change places, one opens a unit
            first, second, third = rng.choice(8, 3, replace=False)
            columns[[first, second]] = columns[[second, first]]
            columns[third] = NEW
        global_units.put_back(client, columns)
    assert bounded[0] > 0 or noise == 1.0
    assert bounded[-1] < 8


def test_a_measured_row_has_exact_gains():
    rng = np.random.default_rng(5)
    global_units, size = grouped(rng, 0.1)
    gain = ScalarGain(1.0, 1.0, np.zeros(size), False)
    alone = [global_units.popularity[slots] == 1 for slots in global_units.slots]
    bounds = GainBounds(global_units, gain, worth, alone)
    global_units.take_out(3)
    row = np.flatnonzero(bounds.at(3).is_bounded)[:1]
    exact = gain(global_units, 3).existing + worth(global_units.popularity[global_units.numbering])
    bounds.measure(3, row)
    most, _, is_bounded, _ = bounds.at(3)
    assert not is_bounded[row].any()
    np.testing.assert_allclose(most[row][:, global_units.numbering], exact[row], rtol=1e-12)


def test_sweeps_multiply_few_rows(monkeypatch):
    """Nine tenths of the rows are shared: after the first pass they have no product any more."""
    rng = np.random.default_rng(6)
    shared = rng.normal(size=(36, 400))
    units = []
    for _ in range(6):
        rows = np.vstack([shared, rng.normal(size=(4, 400))])
        rows += 0.2 * rng.normal(size=rows.shape)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        units.append(rng.permutation(rows).astype(np.float32))
    made, multiply = [], products.Products._multiply
    roughly, multiply_roughly = [], products.Products._multiply_roughly

    def counting(self, slots, rows=None):
        made.append(len(self.square) if rows is None else len(rows))
        return multiply(self, slots, rows)

    def counting_roughly(self, slots, room):
        roughly.append(len(self.square))
        return multiply_roughly(self, slots, room)

    monkeypatch.setattr(products.Products, "_multiply", counting)
    monkeypatch.setattr(products.Products, "_multiply_roughly", counting_roughly)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # a GPU needs no float32
    BBPMAP.reference().match(units)
    assert len(roughly) == 5
    assert max(made) <= 10


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("size", [300, 4500])
def test_rough_gains_are_within_their_error(size, scale):
    """Units are no multiple of what products are aligned to, the signature is one or two blocks."""
    rng = np.random.default_rng(7)
    units = [(scale * rng.normal(size=(70, size))).astype(np.float32) for _ in range(3)]
    global_units = GlobalUnits(units, np.zeros(size), torch.device("cpu"))
    for client in range(2):
        global_units.take_out(client)
        global_units.put_back(client, np.full(70, NEW) if client == 0 else rng.permutation(70))
    gain = ScalarGain(scale**2, 2 * scale**2, scale * rng.normal(size=size), False)
    global_units.take_out(2)
    rough, exact = gain.roughly(global_units, 2), gain(global_units, 2)
    assert (np.abs(rough.existing - exact.existing) <= rough.error).all()
    assert rough.error.max() < 1e-3 * np.abs(exact.existing).max()
