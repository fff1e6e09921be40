"""Estimates of mean and variances, by hand."""

import numpy as np
import pytest
import torch

from fedma_flwr.matching.assignment_problem import NEW
from fedma_flwr.matching.gain import ScalarGain, VectorGain
from fedma_flwr.matching.global_units import GlobalUnits
from fedma_flwr.matching.unit_model import UnitModel, estimate


def two_units(first, second, centre):
    """Return global units of two clients whose rows, of length 1, are members in this order."""
    units = [np.array(rows, dtype=float)[:, None] for rows in (first, second)]
    global_units = GlobalUnits(units, np.array([centre]), torch.device("cpu"))
    global_units.put_back(0, np.full(len(first), NEW))
    global_units.put_back(1, np.arange(len(second)))
    return global_units


def test_moments_by_hand():
    """Members 1, 3 and 10: means 2 and 10, mean 6; squares within sum to 2, over 3 - 2 members.

    The prior variance is that of the means, 16, less 2 (1/2 + 1) / 2.
    """
    for centre in (0.0, 5.0):
        model = estimate(two_units([1, 10], [3], centre), np.array([centre]), True)
        found = [model.mean, model.local, model.prior]
        np.testing.assert_allclose(np.concatenate(found), [6.0, 2.0, 14.5])
        assert model.log_determinant


def test_variances_stay_above_zero():
    model = estimate(two_units([1], [1], 0.0), np.zeros(1), False)
    assert (model.local, model.prior, model.mean) == (1e-10, 1e-10, 1.0)
    assert not model.log_determinant
    # Four members of two units: squares within are over 2; the means' variance is less than that.
    wide = estimate(two_units([0, 1], [8, 9], 0.0), np.zeros(1), False)
    assert (wide.local, wide.prior, wide.mean) == (32.0, 1e-10, 4.5)


def test_a_variance_for_every_dimension_takes_the_longer_formula():
    mean = np.zeros(2)
    assert isinstance(UnitModel(1.0, 2.0, mean, True).gain(mean), ScalarGain)
    assert isinstance(UnitModel(np.ones(2), np.ones(2), mean, True).gain(mean), VectorGain)
    assert isinstance(UnitModel(1.0, np.ones(2), mean, True).gain(mean), VectorGain)


def test_posterior_by_hand():
    """Precisions 1/4 + n / (1/2), numerators 3/4 + sum / (1/2)."""
    model = UnitModel(0.5, 4.0, np.array([3.0]), False)
    numerator, precision = model.posterior(np.array([[1.0], [5.0]]), np.array([1, 2]))
    np.testing.assert_allclose(numerator, [[2.75], [10.75]])
    assert precision.tolist() == [[2.25], [4.25]]


@pytest.mark.parametrize("log_determinant", [False, True])
def test_both_formulas_agree_where_the_variances_do(log_determinant):
    rng = np.random.default_rng(0)
    units = [rng.normal(size=(4, 6)) for _ in range(3)]
    mean = rng.normal(size=6)
    gains = []
    for local, prior in ((0.3, 2.0), (np.full(6, 0.3), np.full(6, 2.0))):
        global_units = GlobalUnits(units, np.zeros(6), torch.device("cpu"))
        global_units.put_back(0, np.full(4, NEW))
        global_units.put_back(1, np.array([1, 3, NEW, 0]))
        gain = UnitModel(local, prior, mean, log_determinant).gain(np.zeros(6))
        existing, new, error = gain(global_units, 2)
        assert not error.any()
        gains.append((existing - existing[:, :1], new - existing[:, 0]))
    for one, other in zip(*gains, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10)
