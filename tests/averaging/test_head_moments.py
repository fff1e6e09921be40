"""The head solved from moments: against the examples themselves, and against what is no moments."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedma_flwr.averaging import ClientUpdate, HeadMoments, HeadSolver, solve_stage
from fedma_flwr.averaging.head_moments import fault_of, solve_head, sum_moments, upper_triangle
from fedma_flwr.averaging.moment_limits import feature_size
from fedma_flwr.structure import LinearHead
from tests.toy import SPEC

HEAD = LinearHead("c", "c.weight", "c.bias")


def examples(seed, n=40, d=6, classes=3):
    generator = torch.Generator().manual_seed(seed)
    phi = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return phi, torch.randint(0, classes, (n,), generator=generator)


def moments_of(phi, y, classes=3):
    targets = torch.nn.functional.one_hot(y, classes).double()
    return HeadMoments(
        upper_triangle(phi.T @ phi),
        targets.T @ torch.cat([phi, torch.ones(len(phi), 1, dtype=torch.float64)], 1),
    )


def slow_ridge(phi, y, regularisation, classes=3, *, bias=True):
    """Numpy's least squares on the examples themselves, the regulariser as more examples."""
    phi, y = phi.numpy(), np.eye(classes)[y.numpy()]
    strength = np.sqrt(regularisation * (phi**2).sum() / phi.shape[1])
    more = strength * np.eye(phi.shape[1])
    if bias:
        phi = np.c_[phi, np.ones(len(phi))]
        more = np.c_[more, np.zeros(len(more))]
    left, right = np.r_[phi, more], np.r_[y, np.zeros((len(more), classes))]
    return np.linalg.lstsq(left, right, rcond=None)[0].T


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("regularisation", [1e-3, 0.01, 1.0])
def test_the_head_is_that_of_ridge_regression(bias, regularisation):
    phi, y = examples(0)

    weight, shift = solve_head(moments_of(phi, y), bias=bias, regularisation=regularisation)

    slow = slow_ridge(phi, y, regularisation, bias=bias)
    np.testing.assert_allclose(weight, slow[:, :6], atol=1e-10)
    if bias:
        np.testing.assert_allclose(shift, slow[:, 6], atol=1e-10)
    assert bias or shift is None


def test_two_examples_by_hand():
    # Inputs 1 and -1 of classes 0 and 1, no bias: A = 2, B = (1, -1); tr(A) / d = 2.
    moments = moments_of(torch.tensor([[1.0], [-1.0]]).double(), torch.tensor([0, 1]), 2)

    weight, _ = solve_head(moments, bias=False, regularisation=0.5)

    assert weight.flatten().tolist() == pytest.approx([1 / 3, -1 / 3])


@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(0, 100))
def test_it_does_not_depend_on_how_examples_are_split(sizes, seed):
    phi, y = examples(seed, n=sum(sizes))
    parts = [moments_of(*part) for part in zip(phi.split(sizes), y.split(sizes), strict=True)]

    total = sum_moments(parts, sizes)

    whole = moments_of(phi, y)
    torch.testing.assert_close(total.gram, whole.gram)
    torch.testing.assert_close(total.cross, whole.cross)


def test_a_clients_own_scale_does_not_count():
    moments = moments_of(*examples(0))
    shrunk = HeadMoments(moments.gram / 40, moments.cross / 40)

    torch.testing.assert_close(sum_moments([shrunk], [40.0]).gram, moments.gram)


def test_dead_units_and_classes_that_nobody_has():
    phi, y = examples(1, n=4)
    phi[:, 2] = 0.0  # and fewer examples than inputs

    weight, bias = solve_head(moments_of(phi, y.clamp_max(1)), bias=True)

    assert weight.isfinite().all()
    assert weight[:, 2].tolist() == [0.0, 0.0, 0.0]
    assert weight[2].tolist() == [0.0] * 6
    assert float(bias[2]) == 0.0


def test_nothing_but_zeros_is_solved_by_the_class_shares():
    moments = moments_of(torch.zeros(4, 3, dtype=torch.float64), torch.tensor([0, 0, 0, 1]))

    weight, bias = solve_head(moments, bias=True)

    assert not weight.any()
    assert bias.tolist() == pytest.approx([0.75, 0.25, 0.0])


def test_a_stage_weighs_clients_by_examples_and_scales_the_head():
    phi, y = examples(2, n=30, d=8, classes=2)
    parts = [moments_of(phi[:10], y[:10], 2), moments_of(phi[10:], y[10:], 2)]
    updates = [ClientUpdate({}, n, None, m) for n, m in zip((10.0, 20.0), parts, strict=True)]

    plain = solve_stage(SPEC, updates, {"b": 8}, HeadSolver(HEAD, scale=1.0), torch.float64)
    usual = solve_stage(SPEC, updates, {"b": 8}, HeadSolver(HEAD), torch.float64)
    large = solve_stage(SPEC, updates, {"b": 8}, HeadSolver(HEAD, norm=5.0), torch.float32)

    slow = slow_ridge(phi, y, 0.01, 2)
    np.testing.assert_allclose(plain.tensors["c.weight"], slow[:, :8], atol=1e-10)
    assert plain.head_solved
    torch.testing.assert_close(usual.tensors["c.weight"], 10 * plain.tensors["c.weight"])
    assert large.tensors["c.weight"].norm().item() == pytest.approx(5.0)
    ratio = large.tensors["c.bias"].double() / plain.tensors["c.bias"]
    assert ratio.tolist() == pytest.approx([5.0 / float(plain.tensors["c.weight"].norm())] * 2)
    assert large.tensors["c.weight"].dtype == torch.float32


def test_the_size_of_inputs_is_their_root_mean_square():
    # Two examples of two inputs: squares 9, 16, 0 and 0.
    phi = torch.tensor([[3.0, -4.0], [0.0, 0.0]]).double()
    assert feature_size(moments_of(phi, torch.tensor([0, 1]), 2)) == 2.5
    assert feature_size(HeadMoments(torch.zeros(0), torch.tensor([[1.0], [2.0]]))) == 0.0


def test_moments_of_real_examples_have_no_fault():
    for seed, n in enumerate((1, 2, 5, 40)):
        moments = moments_of(*examples(seed, n=n))
        assert fault_of(moments) == ""
        assert fault_of(HeadMoments(moments.gram.float() / n, moments.cross.float() / n)) == ""


def inverted(moments):
    return HeadMoments(-moments.gram, moments.cross)


def with_gram(moments, place, value):
    gram = moments.gram.clone()
    gram[place] = value
    return replace(moments, gram=gram)


def with_cross(moments, place, value):
    cross = moments.cross.clone()
    cross[place] = value
    return replace(moments, cross=cross)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: with_gram(m, 3, float("nan")), "not finite"),
        (lambda m: with_cross(m, (0, 0), float("inf")), "not finite"),
        (lambda m: with_cross(m, (1, -1), -1.0), "class counts"),
        (lambda m: HeadMoments(m.gram, m.cross * 0), "no examples"),
        (inverted, "negative squares"),
        (lambda m: with_cross(m, (0, 0), 1e4), "class sums"),
        (lambda m: with_gram(m, 1, 1e4), "positive semidefinite"),
    ],
)
def test_what_cannot_be_moments_is_named(change, words):
    assert words in fault_of(change(moments_of(*examples(3))))


def test_large_moments_are_compared_by_pairs(monkeypatch):
    monkeypatch.setattr("fedma_flwr.averaging.head_moments._FACTORISED", 2)
    moments = moments_of(*examples(3))

    assert fault_of(moments) == ""
    assert "positive semidefinite" in fault_of(with_gram(moments, 1, 1e4))
