"""Variances, price and mass, worked out by hand."""

import numpy as np
import pytest

from fedma_flwr.matching.calibration import calibrate

# Two clients' rows are unit vectors: those of one client are at relative distance 1 of each other.
AXES = np.eye(2)
# Below the line t two units of usual norm are merged, and each of variances and price gives half
# of it: with t = m, the ratio of the variances is m / (2 - m). Prior variance: 1e-6 norm / size.


def told(merged, norm=1.0, size=2):
    """Return what belongs to a line: local and prior variance, the price, the mass."""
    ratio, prior = merged / (2 - merged), 1e-6 * norm / size
    return ratio * prior, prior, merged / (2 + ratio) * norm / (ratio * prior), 1.0, True


def test_equal_clients_by_hand():
    """The line lies between 1/16 and 1, at 1/4: ratio 1/7, price 1/4 over 15/7 of 5e-7 / 7."""
    found = calibrate([AXES, AXES[::-1]], np.zeros(2), gamma=1.0)
    assert found.prior == pytest.approx(5e-7)
    assert found.local == pytest.approx(5e-7 / 7)
    assert found.price == pytest.approx(0.25 * 7 / 15 * 7 / 5e-7)
    assert (found.mass, found.told) == (1.0, True)


def test_the_line_is_the_geometric_mean_of_both_distances():
    """Rows half as long again: 0.25 / (1 + 2.25) = 1/13 apart, more than 1/16."""
    found = calibrate([AXES, 1.5 * AXES], np.zeros(2), gamma=1.0)
    assert found == pytest.approx(told(13**-0.5, norm=1.625))


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_gamma_is_a_factor_of_the_distance(gamma):
    """At the line 1/4 the odds are 1/3."""
    odds = 1 / 3 / gamma
    found = calibrate([AXES, AXES], np.zeros(2), gamma)
    assert found == pytest.approx(told(odds / (1 + odds)))


def test_an_offset_is_the_means_and_scale_is_the_norms():
    offset = np.array([5.0, -3.0])
    found = calibrate([offset + 3 * AXES, offset + 3 * AXES], offset, gamma=1.0)
    assert found == pytest.approx(told(0.25, norm=9.0))


def test_clients_that_have_nothing_in_common_by_hand():
    """Opposed rows are no counterparts; the mass is a tenth of the widest client's width."""
    units = [2 * np.eye(3), -2 * np.eye(4, 3)]
    units[1][3] = [0.0, 0.0, -2.0]
    assert calibrate(units, np.zeros(3), gamma=2.0) == pytest.approx((4, 4, 0, 0.8, False))


@pytest.mark.parametrize(("width", "is_told"), [(20, True), (21, False)])
def test_a_twentieth_of_the_units_has_to_recur(width, is_told):
    """One unit of either client is shared."""
    rows = np.eye(2 * width - 1)
    units = [rows[:width], rows[width - 1 :]]
    assert calibrate(units, np.zeros(rows.shape[1]), gamma=1.0).told is is_told


@pytest.mark.parametrize(("angle", "is_told"), [(0.83, True), (0.85, False)])
def test_a_counterpart_is_nearer_than_a_third(angle, is_told):
    """Rows of norm 1 are at relative distance 1 - cos(angle): a third at 0.841."""
    near = np.array([[np.cos(angle), np.sin(angle), 0.0, 0.0]])
    units = [np.eye(4)[[0, 2]], np.vstack([near, np.roll(near, 2)])]
    assert calibrate(units, np.zeros(4), gamma=1.0).told is is_told


def test_the_last_client_is_compared_with_the_first():
    other = np.eye(4)[2:]
    units = [np.eye(2, 4), other, -np.eye(2, 4), np.eye(2, 4)]
    assert calibrate(units, np.zeros(4), gamma=1.0).told
    units[0] = other[::-1] - 2 * np.eye(2, 4)
    assert not calibrate(units, np.zeros(4), gamma=1.0).told


def test_one_client_and_rows_of_zeros():
    assert calibrate([3 * AXES], np.zeros(2), gamma=1.0) == pytest.approx((9, 9, 0, 0.2, False))
    # Rows of zeros are equal, so that nothing tells them apart.
    nothing = calibrate([0 * AXES, 0 * AXES], np.zeros(2), gamma=1.0)
    assert nothing == pytest.approx((1, 1, 0, 0.2, False))


def test_long_signatures_are_read_to_the_end():
    """Two blocks: the rows differ in the last number only."""
    size = 600
    rows = np.zeros((2, size))
    rows[:, -1] = 1.0, -1.0
    found = calibrate([rows, rows[::-1]], np.zeros(size), gamma=1.0)
    # Opposed rows are as far as can be, which counts as 1.
    assert found == pytest.approx(told(0.25, size=size))
