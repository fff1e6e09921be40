"""Pooled statistics: the mean and variance of all examples, however they are spread."""

import pytest
import torch

from fedma_flwr.averaging.pooled_statistics import from_pooled, to_poolable
from fedma_flwr.structure import PermutationSpec

SPEC = PermutationSpec(
    groups={"h": 2},
    axes={"w": "h, 1", "n.running_mean": "h", "n.running_var": "h", "out": "1, h"},
    statistics=["n.running_mean", "n.running_var"],
)


def tensors(mean, variance, dtype=torch.float32):
    return {
        "w": torch.ones(2, 1, dtype=dtype),
        "n.running_mean": torch.tensor(mean, dtype=dtype),
        "n.running_var": torch.tensor(variance, dtype=dtype),
    }


def test_a_variance_becomes_a_mean_of_squares_and_back():
    one = tensors([3.0, -2.0], [1.0, 0.25])
    poolable = to_poolable(SPEC, one)
    assert poolable["n.running_var"].tolist() == [10.0, 4.25]
    assert poolable["n.running_mean"].dtype == poolable["n.running_var"].dtype == torch.float64
    assert poolable["w"] is one["w"]
    back = from_pooled(SPEC, poolable, one)
    for name, tensor in one.items():
        assert torch.equal(back[name], tensor)
        assert back[name].dtype == tensor.dtype


def test_what_differs_between_means_belongs_to_the_variance():
    parts = [to_poolable(SPEC, tensors([m, 0.0], [v, 1.0])) for m, v in ((0.0, 2.0), (4.0, 6.0))]
    mean = {name: (parts[0][name] + parts[1][name]) / 2 for name in parts[0]}
    pooled = from_pooled(SPEC, mean, tensors([0.0] * 2, [0.0] * 2))
    assert pooled["n.running_mean"].tolist() == [2.0, 0.0]
    assert pooled["n.running_var"].tolist() == [4.0 + 4.0, 1.0]


def test_means_near_the_largest_number_do_not_make_an_infinite_variance():
    like = tensors([0.0] * 2, [0.0] * 2)
    mean = torch.tensor([3e38, 1.0], dtype=torch.float64)
    squares = torch.tensor([2.0, 0.5], dtype=torch.float64) * mean**2
    found = from_pooled(SPEC, {"n.running_mean": mean, "n.running_var": squares}, like)
    assert found["n.running_var"].tolist() == [torch.finfo(torch.float32).max, 0.0]


@pytest.mark.parametrize("missing", ["n.running_mean", "n.running_var"])
def test_half_of_a_pair_stays_as_it_is(missing):
    rest = tensors([3.0, -2.0], [1.0, 0.25])
    del rest[missing]
    assert all(tensor is rest[name] for name, tensor in to_poolable(SPEC, rest).items())
    assert all(tensor is rest[name] for name, tensor in from_pooled(SPEC, rest, rest).items())
