"""Noise on moments: how much one example can change them, and that moments come out again."""

import math

import pytest
import torch

from fedma_flwr.averaging.head_moments import fault_of
from fedma_flwr.averaging.moment_limits import feature_size
from fedma_flwr.averaging.private_moments import (
    SENSITIVITY,
    add_noise,
    as_moments,
    bounded_rows,
    bounded_sums,
    epsilon_of,
    rho_of,
)
from fedma_flwr.averaging.ridge_regression import solve_head


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def sums(features, targets, weights=None, max_norm=2.0):
    weights = torch.ones(len(features), dtype=torch.float64) if weights is None else weights
    return bounded_sums(bounded_rows(features, max_norm), targets, weights)


def examples(seed, n=50, d=6, classes=3, scale=1.0):
    generator = seeded(seed)
    labels = torch.randint(0, classes, (n,), generator=generator)
    means = torch.randn(classes, d, generator=generator)
    features = scale * (means[labels] + torch.randn(n, d, generator=generator))
    return features, torch.nn.functional.one_hot(labels, classes).float()


def change(features, targets, without):
    """How far the sums move, together, when an example is taken out."""
    kept = torch.arange(len(features)) != without
    both = zip(sums(features, targets), sums(features[kept], targets[kept]), strict=True)
    return math.sqrt(sum(float((a - b).square().sum()) for a, b in both))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("scale", [0.01, 1.0, 1e6])
def test_no_example_changes_the_sums_by_more_than_the_sensitivity(seed, scale):
    """Tried with every example, with soft targets, and with targets that are no probabilities."""
    features, hard = examples(seed, scale=scale)
    odd = torch.randn(hard.shape, generator=seeded(seed)) * 100
    for targets in (hard, odd.softmax(1), odd):
        changes = [change(features, targets, place) for place in range(len(features))]
        assert max(changes) <= SENSITIVITY * (1 + 1e-12)


def test_the_sensitivity_is_reached():
    features, targets = examples(0)
    features[3] = 0.0
    features[3, 2] = 1e9  # along an axis: gram has one entry, and the norm is that of max_norm
    assert change(features, targets, 3) == pytest.approx(SENSITIVITY, rel=1e-9)


def test_an_example_with_many_rows_counts_as_their_mean():
    features, targets = examples(1, n=7, scale=100.0)
    gram, cross = sums(features, targets, torch.full((7,), 1 / 7, dtype=torch.float64))
    assert math.sqrt(gram.square().sum() + cross.square().sum()) <= SENSITIVITY
    assert float(cross[:, -1].sum()) == pytest.approx(1.0)


def test_what_is_not_finite_counts_as_zeros():
    features, targets = examples(2)
    features[0, 0], features[1, 1] = float("nan"), float("inf")
    zeros = features.clone()
    zeros[:2] = 0.0
    for found, expected in zip(sums(features, targets), sums(zeros, targets), strict=True):
        assert torch.equal(found, expected)


def test_the_noise_has_the_deviation_that_it_should_have():
    """Of each number, whatever it is a sum of; and no two numbers share it."""
    gram, cross = torch.zeros(15, dtype=torch.float64), torch.ones(4, 6, dtype=torch.float64)
    generator = seeded(3)
    drawn = [
        torch.cat([t.flatten() for t in add_noise(gram, cross, 0.7, generator)])
        for _ in range(4000)
    ]
    noise = torch.stack(drawn) - torch.cat([gram, cross.flatten()])
    covariance = noise.T @ noise / len(noise)
    variance = (0.7 * SENSITIVITY) ** 2
    difference = covariance / variance - torch.eye(39, dtype=torch.float64)
    assert float(noise.mean(0).abs().max()) < 0.1
    assert float(difference.abs().max()) < 0.12  # five standard errors of a variance


@pytest.mark.parametrize("n", [1, 3, 200, 20_000])
@pytest.mark.parametrize("noise", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("d", [1, 5, 40])
@pytest.mark.parametrize("max_norm", [1e-3, 1.0, 1e4])
def test_the_server_accepts_what_comes_out(n, noise, d, max_norm):
    for seed in range(4):
        features, targets = examples(seed, n=n, d=d, scale=max_norm)
        noisy = add_noise(*sums(features, targets, max_norm=max_norm), noise, seeded(seed))
        moments = as_moments(*noisy, max_norm)
        assert moments.gram.dtype == moments.cross.dtype == torch.float32
        assert fault_of(moments) == ""
        assert moments.examples == pytest.approx(1.0, rel=1e-5)
        # No client's inputs look larger than examples can have.
        assert feature_size(moments) <= max_norm / math.sqrt(d) * (1 + 1e-5)


def test_where_noise_leaves_no_example_the_moments_say_nothing():
    gram, cross = torch.randn(10).double(), -torch.ones(3, 5).double()
    moments = as_moments(gram, cross, 1.0)
    assert fault_of(moments) == ""
    assert not moments.gram.any()
    assert torch.allclose(moments.cross[:, -1], torch.full((3,), 1 / 3))
    weight, _ = solve_head(moments, bias=True)
    assert not weight.any()


def test_without_noise_the_moments_are_those_of_the_examples():
    features, targets = examples(5, n=300)
    max_norm = float(features.norm(dim=1).max())
    moments = as_moments(*sums(features, targets, max_norm=max_norm), max_norm)
    wide = torch.cat([features, torch.ones(300, 1)], 1)
    square = (features.T @ features)[tuple(torch.triu_indices(6, 6))]
    torch.testing.assert_close(moments.gram, square / 300, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(moments.cross, targets.T @ wide / 300, rtol=1e-5, atol=1e-6)


def test_the_nearest_moments_are_nearer_than_the_noisy_ones():
    """Half of the error in the squares goes, where noise is as large as they are."""
    features, targets = examples(6, n=2000, d=60)
    clean = sums(features, targets, max_norm=12.0)
    noisy = add_noise(*clean, 10.0, seeded(6))
    found = as_moments(*noisy, 12.0).gram.double() * float(noisy[1][:, -1].sum()) / 12.0**2
    assert (found - clean[0]).norm() < 0.5 * (noisy[0] - clean[0]).norm()


def test_rho_and_epsilon():
    assert rho_of(1.0) == 0.5
    assert rho_of(2.0) == 0.125
    assert epsilon_of(0.5, 1e-5) == pytest.approx(0.5 + 2 * math.sqrt(0.5 * math.log(1e5)))
    assert epsilon_of(0.0, 1e-5) == 0.0


def test_epsilon_is_no_less_than_a_gaussian_mechanisms():
    """The exact one, by the formula of Balle and Wang (2018), theorem 8, at some sigmas."""
    normal = torch.distributions.Normal(torch.tensor(0.0).double(), torch.tensor(1.0).double()).cdf
    for sigma in (0.7, 1.0, 3.0, 10.0):
        epsilon = epsilon_of(rho_of(sigma), 1e-5)
        left = torch.tensor(0.5 / sigma - epsilon * sigma).double()
        right = torch.tensor(-0.5 / sigma - epsilon * sigma).double()
        assert float(normal(left) - math.exp(epsilon) * normal(right)) <= 1e-5
