"""The head solved from moments: against the examples themselves, and against what is no moments."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedma_flwr.averaging import ClientUpdate, HeadMoments, HeadSolver, solve_stage
from fedma_flwr.averaging.head_moments import fault_of, sum_moments, upper_triangle
from fedma_flwr.averaging.moment_limits import feature_size
from fedma_flwr.averaging.ridge_regression import GRID, choose_regularisation, solve_head
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


def slow_errors(phi, y, classes=3, *, bias=True):
    """Generalised cross-validation of every regulariser by the hat matrix of the examples."""
    n, d = phi.shape
    targets = np.eye(classes)[y.numpy()]
    inputs = np.c_[phi.numpy(), np.ones(n)] if bias else phi.numpy()
    regular = np.diag([1.0] * d + [0.0] * (inputs.shape[1] - d)) * float((phi**2).sum()) / d
    errors = []
    for strength in GRID:
        hat = inputs @ np.linalg.solve(inputs.T @ inputs + strength * regular, inputs.T)
        errors.append(((targets - hat @ targets) ** 2).sum() / (1 - np.trace(hat) / n) ** 2)
    return errors


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("noise", "n"), [(0.0, 60), (1.0, 60), (4.0, 60), (1.0, 20), (0.1, 500)])
def test_the_regulariser_is_that_of_generalised_cross_validation(noise, n, bias):
    generator = torch.Generator().manual_seed(3)
    phi, _ = examples(3, n=n)
    scores = phi @ torch.randn(6, 3, generator=generator, dtype=torch.float64)
    y = (scores + noise * torch.randn(n, 3, generator=generator)).argmax(1)

    chosen = choose_regularisation(moments_of(phi, y), bias=bias)

    errors = slow_errors(phi, y, bias=bias)
    assert chosen == GRID[int(np.argmin(errors))]


def test_regularisers_differ_from_problem_to_problem():
    """Targets that are noise are fitted least, clean ones most."""
    generator = torch.Generator().manual_seed(4)
    phi, noise = examples(4, n=200)
    clean = (phi @ torch.randn(6, 3, generator=generator, dtype=torch.float64)).argmax(1)

    chosen = [choose_regularisation(moments_of(phi, y), bias=True) for y in (clean, noise)]

    assert chosen[0] < chosen[1]


def test_without_examples_to_spare_nothing_is_chosen():
    phi, y = examples(1, n=3)
    assert choose_regularisation(moments_of(phi, y), bias=True) in GRID
    weight, _ = solve_head(moments_of(phi, y), bias=True)
    assert weight.isfinite().all()


def test_a_stage_weighs_clients_by_examples_and_scales_the_head():
    phi, y = examples(2, n=30, d=8, classes=2)
    parts = [moments_of(phi[:10], y[:10], 2), moments_of(phi[10:], y[10:], 2)]
    updates = [ClientUpdate({}, n, None, m) for n, m in zip((10.0, 20.0), parts, strict=True)]

    def solved(dtype=torch.float64, **options):
        solver = HeadSolver(HEAD, regularisation=0.02, **options)
        return solve_stage(SPEC, updates, {"b": 8}, solver, dtype)

    plain, usual, bounded = solved(scale=1.0), solved(), solved(torch.float32, start_norm=0.1)

    slow = slow_ridge(phi, y, 0.02, 2)
    np.testing.assert_allclose(plain.tensors["c.weight"], slow[:, :8], atol=1e-10)
    assert plain.head_solved
    torch.testing.assert_close(usual.tensors["c.weight"], 10 * plain.tensors["c.weight"])
    assert usual.local_head == {}
    start = bounded.local_head["c.weight"]
    assert start.norm().item() == pytest.approx(0.1 * (2 / 3) ** 0.5)  # of a new layer: C / 3
    ratio = bounded.local_head["c.bias"].double() / plain.tensors["c.bias"]
    expected = float(start.norm()) / float(plain.tensors["c.weight"].norm())
    assert ratio.tolist() == pytest.approx([expected] * 2)
    assert start.dtype == torch.float32
    torch.testing.assert_close(bounded.tensors["c.weight"].double(), usual.tensors["c.weight"])


def test_a_head_to_start_from_is_never_larger_than_the_solved_one():
    phi, y = examples(2, n=30, d=8, classes=2)
    update = ClientUpdate({}, 30.0, None, moments_of(phi, y, 2))

    found = solve_stage(SPEC, [update], {"b": 8}, HeadSolver(HEAD, start_norm=1e6), torch.float64)

    torch.testing.assert_close(found.local_head, found.tensors)


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


def test_large_moments_are_factorised_roughly(monkeypatch):
    monkeypatch.setattr("fedma_flwr.averaging.head_moments._FACTORISED", 2)
    moments = moments_of(*examples(3))

    assert fault_of(moments) == ""
    assert "positive semidefinite" in fault_of(with_gram(moments, 1, 1e4))


def test_no_pair_of_inputs_tells_that_these_are_no_moments(monkeypatch):
    monkeypatch.setattr("fedma_flwr.averaging.head_moments._FACTORISED", 2)
    moments = moments_of(*examples(3))
    roots = moments.square().diagonal()[:-1].sqrt()
    against = -torch.outer(roots, roots)  # each pair as contrary as can be: no data are
    against.diagonal().neg_()

    assert "positive semidefinite" in fault_of(replace(moments, gram=upper_triangle(against)))


def test_positions_are_examples_too_where_the_regulariser_is_chosen():
    phi, y = examples(5, n=12, d=8)  # few examples ask for more than many do
    few = choose_regularisation(moments_of(phi, y), bias=True)
    many = choose_regularisation(moments_of(phi, y), bias=True, positions=1000.0)
    assert many < few
