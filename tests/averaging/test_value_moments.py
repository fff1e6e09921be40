"""Moments of targets that are values: what they are summed from, solved to, and refused for."""

import pytest
import torch

from fedma_flwr.averaging import ClientUpdate, HeadMoments, HeadSolver, contrary_moments
from fedma_flwr.averaging.head_moments import fault_of, sum_moments, upper_triangle
from fedma_flwr.averaging.moment_limits import at_most_usual, odd_kinds, oversized_targets
from fedma_flwr.averaging.ridge_regression import GRID, solve_head, unexplained_share
from fedma_flwr.structure import LinearHead
from tests.averaging.test_head_moments import examples
from tests.averaging.test_head_moments import moments_of as class_moments

D, OUTPUTS = 7, 2


def problem(seed, rows=40, offset=50.0):
    generator = torch.Generator().manual_seed(seed)
    phi = torch.randn(rows, D, generator=generator, dtype=torch.float64) + 1
    truth = torch.randn(D, OUTPUTS, generator=torch.Generator().manual_seed(9)).double()
    noise = torch.randn(rows, OUTPUTS, generator=generator, dtype=torch.float64)
    return phi, offset + phi @ truth + 0.3 * noise


def moments_of(phi, y):
    """Of an average example."""
    ones = torch.cat([phi, torch.ones_like(phi[:, :1])], 1)
    targets = torch.cat([y, torch.ones_like(y[:, :1])], 1)
    gram = upper_triangle(phi.T @ phi) / len(phi)
    return HeadMoments(gram, targets.T @ ones / len(phi), squares=y.square().sum(0) / len(phi))


def by_hand(phi, y, strength):
    """Ridge regression with an intercept that is not regularised."""
    ones = torch.cat([phi, torch.ones_like(phi[:, :1])], 1)
    penalty = torch.eye(D + 1, dtype=torch.float64) * strength * phi.square().mean(0).mean()
    penalty[-1, -1] = 0.0
    solved = torch.linalg.solve(ones.T @ ones + len(phi) * penalty, ones.T @ y).T
    return solved[:, :-1], solved[:, -1]


def pooled():
    clients = [problem(seed, rows) for seed, rows in enumerate((40, 90, 25))]
    phi, y = (torch.cat(parts) for parts in zip(*clients, strict=True))
    total = sum_moments([moments_of(*own) for own in clients], [len(own[0]) for own in clients])
    return phi, y, total


@pytest.mark.parametrize("strength", [1e-4, 1e-2, 0.3])
def test_the_head_is_the_ridge_of_all_clients_examples(strength):
    phi, y, total = pooled()
    weight, bias = solve_head(total, bias=True, regularisation=strength)
    for found, wanted in zip((weight, bias), by_hand(phi, y, strength), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-7)


def test_what_is_left_unexplained_is_the_share_of_the_variance():
    phi, y, total = pooled()
    weight, bias = by_hand(phi, y, 1e-3)
    left = (phi @ weight.T + bias - y).square().sum() / (y - y.mean(0)).square().sum()
    assert unexplained_share(total, weight, bias) == pytest.approx(float(left), rel=1e-5)


def test_the_regulariser_is_that_of_generalised_cross_validation():
    phi, y, total = pooled()
    ones = torch.cat([phi, torch.ones_like(phi[:, :1])], 1)

    def error(strength):
        penalty = torch.eye(D + 1, dtype=torch.float64) * strength * phi.square().mean()
        penalty[-1, -1] = 0.0
        hat = ones @ torch.linalg.solve(ones.T @ ones + len(phi) * penalty, ones.T)
        return float((y - hat @ y).square().sum() / (1 - hat.trace() / len(phi)) ** 2)

    solver = HeadSolver(LinearHead("head", "w", "b"))
    solved = solver.solve_total(total, (OUTPUTS, D), {}, 1.0)
    weight, bias = by_hand(phi, y, min(GRID, key=error))
    torch.testing.assert_close(solved.tensors["w"], weight, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(solved.tensors["b"], bias, rtol=1e-6, atol=1e-6)


def test_values_stay_on_their_scale_and_training_goes_on_from_the_trained_heads_average():
    _, _, total = pooled()
    head = LinearHead("head", "w", "b")
    stepping = HeadSolver(head, start_norm=4.0, steps_from_trained=True)
    reference = {"w": torch.ones(OUTPUTS, D), "b": torch.ones(OUTPUTS)}
    assert stepping.solve_total(total, (OUTPUTS, D), reference, 1.0).local_head == {}
    solved = stepping.solve_total(total, (OUTPUTS, D), {}, 1.0).tensors
    plain = HeadSolver(head, start_norm=4.0).solve_total(total, (OUTPUTS, D), {}, 1.0)
    torch.testing.assert_close(solved["w"], plain.tensors["w"])
    assert plain.local_head["w"].norm() <= solved["w"].norm()


def changed(**fields):
    own = moments_of(*problem(0))
    return HeadMoments(
        **{**own.named(), **{n: change(getattr(own, n)) for n, change in fields.items()}}
    )


@pytest.mark.parametrize(
    ("moments", "words"),
    [
        (changed(), ""),
        (changed(squares=lambda t: t * float("inf")), "not finite"),
        (changed(squares=lambda t: -t), "negative squares"),
        (changed(squares=lambda t: t / 4), "larger than their squares allow"),
        (changed(cross=lambda t: torch.cat([3 * t[:-1], t[-1:]])), "larger than their squares"),
        (changed(cross=lambda t: torch.cat([t[:-1], -t[-1:]])), "no examples"),
        (changed(cross=lambda t: torch.cat([t[:-1], 9 * t[-1:]])), "semidefinite"),
    ],
)
def test_moments_that_no_values_can_have_are_refused(moments, words):
    assert words in fault_of(moments)
    assert bool(words) == bool(fault_of(moments))


def updates(**moments):
    return {int(node[1:]): ClientUpdate({}, 40.0, moments=own) for node, own in moments.items()}


def test_targets_far_larger_than_usual_are_refused():
    sizes = {0: 1.0, 1: 1.1, 2: 4.0, 3: 30.0}
    sent = {
        node: ClientUpdate({}, 40.0, moments=moments_of(phi, size * y))
        for node, size in sizes.items()
        for phi, y in [problem(node)]
    }
    found = oversized_targets(sent, 10.0)
    assert list(found) == [3]
    assert "max_norm_ratio" in found[3]


def test_an_output_that_is_zero_for_most_clients_refuses_nobody():
    edge = torch.tensor([1.0, 0.0])
    sent = {}
    for node in range(4):
        phi, y = problem(node)
        y = y * (edge if node else edge + 0.5)
        sent[node] = ClientUpdate({}, 40.0, moments=moments_of(phi, y))
    assert oversized_targets(sent, 10.0) == {}


def test_who_has_another_kind_of_targets_than_most_is_refused():
    classes = class_moments(*examples(0))
    own = moments_of(*problem(0))
    assert list(odd_kinds(updates(n0=own, n1=classes, n2=own))) == [1]
    assert list(odd_kinds(updates(n0=classes, n1=classes, n2=own))) == [2]
    assert odd_kinds(updates(n0=own, n1=own)) == {}


def test_robust_rules_take_values():
    sent = {n: ClientUpdate({}, 40.0, moments=moments_of(*problem(n))) for n in range(4)}
    assert contrary_moments(sent) == {}
    larger = sent[3].moments
    sent[3] = ClientUpdate(
        {}, 40.0, moments=HeadMoments(9 * larger.gram, larger.cross, squares=larger.squares)
    )
    kept = at_most_usual(sent)[3].moments
    torch.testing.assert_close(kept.squares, larger.squares)
    assert kept.examples == pytest.approx(larger.examples)


def test_they_are_written_and_read_by_name():
    own = moments_of(*problem(0))
    again = HeadMoments.of({f"x.{name}": t for name, t in own.named().items()}, "x.")
    assert again.expected is None
    assert torch.equal(again.squares, own.squares)
    assert (again.inputs, again.outputs) == (D, OUTPUTS)
