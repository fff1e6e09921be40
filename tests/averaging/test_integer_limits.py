"""Counts such as num_batches_tracked: a client cannot move them much further than others do."""

import pytest
import torch

from fedma_flwr.averaging import ClientUpdate
from fedma_flwr.averaging.averages import Averaging
from fedma_flwr.averaging.integer_limits import bound_integers
from fedma_flwr.averaging.judging import judge
from fedma_flwr.averaging.limits import Limits
from fedma_flwr.structure import PermutationSpec


def bounded(values, start, ratio=10.0, dtype=torch.int64):
    tensors = [torch.tensor(value, dtype=dtype) for value in values]
    updates = {
        n: ClientUpdate({"n": tensor, "w": torch.ones(1)}, 1) for n, tensor in enumerate(tensors)
    }
    model = {"n": torch.tensor(start, dtype=dtype), "w": torch.zeros(1)}
    found = bound_integers(updates, model, ratio)
    assert all(update.tensors["n"].dtype == dtype for update in found.values())
    return [update.tensors["n"].tolist() for update in found.values()]


@pytest.mark.parametrize(
    ("values", "start", "wanted"),
    [
        ([103, 110, 105, 2**53], 100, [103, 110, 105, 150]),
        ([103, 110, 105, -(2**53)], 100, [103, 110, 105, 50]),
        ([2**62, 3], 0, [30, 3]),  # of two, the smaller one is the usual one
        ([0, 0, 7], 0, [0, 0, 7]),  # ten at least, where nobody else has moved
        ([0, 0, 70], 0, [0, 0, 10]),
        ([10**6 + 5, 10**6 + 5, 10**9], 10**6, [10**6 + 5, 10**6 + 5, 10**6 + 50]),
        ([[1, 2], [2, 1], [9, 900]], [0, 0], [[1, 2], [2, 1], [9, 20]]),
        ([[1, 2, 3], [2, 1], [9, 900]], [0, 0], [[1, 2, 3], [2, 1], [9, 30]]),  # other widths
        ([[], []], [], [[], []]),
        ([-(2**63), 5, 5, 2**63 - 1], 4, [0, 5, 5, 14]),
        ([-1, 5, 5], 4, [0, 5, 5]),  # a layer would divide by it, once one is added
        ([-1, -5, 5], 0, [-1, -5, 5]),  # no counts
        ([-1, -500, 5], -4, [-1, -94, 5]),
    ],
)
def test_what_jumps_is_cut_at_ten_times_the_usual(values, start, wanted):
    assert bounded(values, start) == wanted


def test_small_types_hold_what_is_left():
    assert bounded([1, 2, 255], 0, dtype=torch.uint8) == [1, 2, 20]
    assert bounded([True, False, True], False, dtype=torch.bool) == [True, False, True]
    assert bound_integers({}, {}, 10.0) == {}


def test_it_cannot_grow_by_its_own_growth():
    """Forty rounds of a client that always sends as much as passes: growth is linear."""
    start = 0
    for _ in range(40):
        start = round(sum(bounded([start + 5] * 3 + [2**53], start)) / 4)
    assert start <= 40 * (3 * 5 + 50) / 4 + 40


def test_judging_bounds_them_and_refuses_nobody():
    spec = PermutationSpec({"g": 2}, {"w": "g", "v": "1, g", "n": ""})
    model = {"w": torch.ones(2), "v": torch.ones(1, 2), "n": torch.tensor(0)}
    updates = {
        node: ClientUpdate({**model, "n": torch.tensor(count)}, 1)
        for node, count in enumerate([5, 6, 5, 2**53])
    }
    kept, refused = judge(spec, updates, model, Limits(), Averaging("mean"))
    assert refused == {}
    assert [int(update.tensors["n"]) for update in kept.values()] == [5, 6, 5, 50]
