"""The errors of products in float32, and the bounds that allow for them, by hand.

With u = 2^-24 and signatures of length 2 in one block, the error of a product of w and T is
``(2 + 1 + 3) u |w| |T|``.
"""

import numpy as np
import pytest
import torch

from fedma_flwr.matching.assignment_problem import NEW
from fedma_flwr.matching.first_bounds import FirstBounds
from fedma_flwr.matching.gain import ScalarGain
from fedma_flwr.matching.global_units import GlobalUnits
from fedma_flwr.matching.products import TINY, rounding

CPU, U = torch.device("cpu"), 2.0**-24
R = 6 * U


def shared(units):
    """Return the global units of clients whose unit l is global unit l."""
    global_units = GlobalUnits(units, np.zeros(units[0].shape[1]), CPU)
    for client, rows in enumerate(units):
        columns = np.arange(len(rows)) if client else np.full(len(rows), NEW)
        global_units.put_back(client, columns)
    return global_units


def test_the_relative_error_counts_terms_and_blocks():
    units = [np.zeros((3, size)) for size in (2, 20_000)]
    assert rounding(shared(units[:1]), 3) == R
    long = shared(units[1:])
    # 64 rows of 4 bytes and 2 x 10^4 terms are cut into three pieces of 512 x 4352 bytes, as are
    # 64 rows at least; the longest has 6667 terms.
    assert [b.stop - b.start for b in long.blocks(3, itemsize=4)] == [6666, 6667, 6667]
    assert rounding(long, 3) == (6667 + 3 + 3) * U
    assert rounding(long) == (20_000 + 1 + 3) * U


def test_rough_products_have_the_error_of_the_longest_row():
    """Rows (3, 4) and (0, 1), sums (6, 8) and (0, 0.5) of the other clients."""
    rows = np.array([[3.0, 4.0], [0.0, 1.0]])
    global_units = shared([rows, np.array([[3.0, 4.0], [0.0, -0.5]]), np.zeros((2, 2))])
    global_units.take_out(2)
    gain = ScalarGain(local=0.5, prior=0.25, mean=np.array([1.0, 0.0]), log_determinant=False)
    products = gain.products(global_units, 0)
    global_units.take_out(0)
    rough = products.roughly(np.arange(2), gain.room)
    # Without the client itself the sums are (3, 4) and (0, -0.5).
    np.testing.assert_allclose(rough.error, R * 5 * np.array([5.0, 0.5]) + 2 * TINY, rtol=1e-12)
    assert rough.cross.tolist() == [[25.0, -2.0], [4.0, -0.5]]
    assert rough.square.tolist() == [25.0, 0.25]
    assert rough.prior.tolist() == [3.0, 0.0]
    # Twice a product with s times the sum over S = 4 + 2, at the weight 2 * 6 / 8.
    assert gain.roughly(global_units, 0).error == pytest.approx(2 * 1.5 * 2 / 6 * rough.error)


@pytest.mark.parametrize("measured", [False, True])
def test_first_bounds_by_hand(measured):
    """Two clients with the units (1, 0) and (0, 1), s = 2, s0 = 4, prior mean 0.

    The means are (1/2, 0) and (0, 1/2) at S = 8, and (1/3, 0), (0, 1/3) at S = 6 without the
    client, at a third of the distance 1/2 from its rows; the weight is then 3/2.
    """
    units = [np.eye(2), np.eye(2)]
    global_units = shared(units)
    gain = ScalarGain(local=0.5, prior=0.25, mean=np.zeros(2), log_determinant=False)
    rows = [np.array([measured, False]) for _ in units]
    first = FirstBounds(global_units, gain, lambda popularity: 10.0 * popularity, rows)
    most = np.empty((2, 2))
    error = first.of_client(1, most)

    # A row's own part of the error is R, that of a unit R / 4: its mean is 1/2 long.
    row, unit, step = R, R / 4, 1 / 3
    own = step * (1 + step) * (row + unit)  # of |m|^2 where the client has a row
    distance = np.sqrt(1 / 4 + row + unit)
    lengths = 0 + distance * 1 / 2 + step * distance  # m_o . m_i, |e| |m_i| and |w| moved
    elsewhere = 10 - 1.5 * ((1 - unit) - 2 * lengths + (1 / 9 - own - unit))
    least = 10 - 1.5 * (distance / (3 / 4)) ** 2
    all_errors = own + (1 + step) * (unit + row) + step * (row + row)
    expected = np.array([[least, elsewhere], [elsewhere, least]])
    if measured:
        expected[0] = 10 - 1.5 * (1 - 2 * np.array([1 / 3, 0]) + 1 / 9 - all_errors)
    np.testing.assert_allclose(most, expected, rtol=1e-14)
    np.testing.assert_allclose(error, 2 * 1.5 * all_errors, rtol=1e-12)
    assert [rows.tolist() for rows in first.measured] == [[measured, False]] * 2


def test_rows_far_from_their_units_are_measured_at_once():
    """The mean of (0, y) and (1, 0) is (1/3, y/3), too far from the first for both y.

    For the second it is ``(4 + y^2) / 9 > 1/2``.
    """
    gain = ScalarGain(local=1.0, prior=1.0, mean=np.zeros(2), log_determinant=False)
    for y, far in ((0.7, [True, False]), (0.72, [True, True])):
        global_units = shared([np.array([[0.0, y]]), np.array([[1.0, 0.0]])])
        nobody = [np.zeros(1, dtype=bool)] * 2
        first = FirstBounds(global_units, gain, np.zeros_like, nobody)
        assert [bool(rows[0]) for rows in first.measured] == far


@pytest.mark.parametrize(
    ("rows", "far"),
    [
        # With the prior mean (1, 0) their mean is (2/3, 0.23): the first is at the prior mean.
        ([[1.0, 0.0], [0.0, 0.7]], [True, False]),
        # It is (2, 0), at 1/4 from either, and these are at 9/4 from the prior mean.
        ([[2.5, 0.0], [2.5, 0.0]], [False, False]),
    ],
)
def test_far_is_measured_by_the_distance_from_the_prior_mean(rows, far):
    gain = ScalarGain(local=1.0, prior=1.0, mean=np.array([1.0, 0.0]), log_determinant=False)
    global_units = shared([np.array([row]) for row in rows])
    first = FirstBounds(global_units, gain, np.zeros_like, [np.zeros(1, dtype=bool)] * 2)
    assert [bool(rows[0]) for rows in first.measured] == far
