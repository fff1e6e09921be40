"""The solved head as a step from the trained one, and when regression is taken instead."""

import pytest
import torch

from fedma_flwr.averaging import ClientUpdate, HeadMoments, HeadSolver
from fedma_flwr.averaging.head_moments import upper_triangle
from fedma_flwr.averaging.ridge_regression import left_by, newton_step, solve_head
from fedma_flwr.structure import LinearHead
from tests.toy import SPEC

CLASSES, INPUTS = 2, 8


def examples(n=60):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(n, INPUTS, generator=generator, dtype=torch.float64)
    return inputs, (inputs[:, 0] + 0.3 * inputs[:, 1] > 0).long()


def moments_of(inputs, labels, weight=None, bias=None):
    ones = torch.ones(len(inputs), 1, dtype=torch.float64)
    extended = torch.cat([inputs, ones], 1)
    targets = torch.nn.functional.one_hot(labels, CLASSES).double()
    expected = None
    if weight is not None:
        expected = (inputs @ weight.T + bias).softmax(1).T @ extended
    return HeadMoments(upper_triangle(inputs.T @ inputs), targets.T @ extended, expected)


def solve(weight, bias):
    moments = moments_of(*examples(), weight, bias)
    solver = HeadSolver(LinearHead("c", "c.weight", "c.bias"), 0.001, steps_from_trained=True)
    reference = {"c.weight": weight, "c.bias": bias}
    solved = solver.solve(SPEC, [ClientUpdate({}, 60.0, moments=moments)], {"b": INPUTS}, reference)
    plain = solve_head(moments, bias=True, regularisation=0.001)
    return solved.tensors, plain, moments


def test_what_a_head_leaves_is_the_residual_on_its_best_scale():
    inputs, labels = examples()
    weight = torch.tensor([[-1.0, *[0.0] * 7], [1.0, *[0.0] * 7]], dtype=torch.float64)
    bias = torch.tensor([0.3, 0.1], dtype=torch.float64)
    outputs = inputs @ weight.T + bias
    targets = torch.nn.functional.one_hot(labels, CLASSES).double() - 0.5
    outputs = outputs - outputs.mean(1, keepdim=True)
    scale = max(float((outputs * targets).sum() / outputs.square().sum()), 0.0)
    left = (targets - scale * outputs).square().sum() / targets.square().sum()
    moments = moments_of(inputs, labels)
    assert left_by(moments, weight, bias) == pytest.approx(float(left))
    assert left_by(moments, 7 * weight, 7 * bias) == pytest.approx(float(left))
    assert left_by(moments, -weight, -bias) == pytest.approx(1.0)
    assert left_by(moments, 0 * weight, None) == 1.0


def test_from_zeros_the_step_is_regression_less_the_mean():
    zeros = torch.zeros(CLASSES, INPUTS, dtype=torch.float64), torch.zeros(CLASSES).double()
    moments = moments_of(*examples(), *zeros)
    stepped = newton_step(moments, bias=True, regularisation=1e-9)
    plain = solve_head(moments, bias=True, regularisation=1e-9)
    for step, regression in zip(stepped, plain, strict=True):
        assert step - step.mean(0) == pytest.approx(regression - regression.mean(0), abs=1e-6)


def test_a_sound_head_is_where_the_step_starts():
    weight = torch.zeros(CLASSES, INPUTS, dtype=torch.float64)
    weight[1, 0] = 1.0
    bias = torch.zeros(CLASSES, dtype=torch.float64)
    solved, _, moments = solve(weight, bias)
    step, _ = newton_step(moments, bias=True, regularisation=0.001)
    assert solved["c.weight"] == pytest.approx(weight + 10 * step)


def test_where_the_trained_heads_have_strayed_regression_is_taken():
    weight = torch.zeros(CLASSES, INPUTS, dtype=torch.float64)
    weight[1, 5] = 300.0  # sure of itself, by an input that says nothing of the class
    bias = torch.zeros(CLASSES, dtype=torch.float64)
    solved, (plain, plain_bias), _ = solve(weight, bias)
    assert solved["c.weight"] == pytest.approx(10 * plain)
    assert solved["c.bias"] == pytest.approx(10 * plain_bias)
