"""The model that a spec is proven on: how it runs, and what its output changes by."""

import math

import pytest
import torch

from fedma_flwr.structure import PermutationSpec
from fedma_flwr.structure.proving.invariance import is_repeatable, run_or_none
from fedma_flwr.structure.proving.model_in_proof import ModelInProof, relative_change
from tests.structure.networks import mlp

SPEC = PermutationSpec(
    {"g": 8}, {"a.weight": "g, 6", "a.bias": "g", "b.weight": "3, g", "b.bias": "3"}
)
INF, NAN = math.inf, math.nan


def in_proof(hidden):
    return ModelInProof(SPEC, mlp(hidden), (torch.ones(4, 6),))


@pytest.mark.parametrize(
    ("output", "reference", "change"),
    [
        ([1.0, 4.0], [1.0, 5.0], 0.2),  # of the largest entry
        ([1.0, -4.0], [1.5, -4.0], 0.125),
        ([NAN, INF, 2.0], [NAN, INF, 2.0], 0.0),
        ([NAN, INF, 1.0], [NAN, INF, 2.0], 0.5),
        ([0.0], [0.0], 0.0),
        ([1.0], [0.0], INF),
        ([], [], 0.0),
        ([1.0, 1.0], [1.0], INF),
        ([1, 2], [1, 2], 0.0),
        ([1, 2], [1, 3], INF),
        ([1], [1.0], INF),
        ([True], [True], 0.0),
    ],
)
def test_a_change_is_relative_to_the_largest_entry(output, reference, change):
    assert relative_change([torch.tensor(output)], [torch.tensor(reference)]) == change


def test_of_several_outputs_the_largest_change_counts():
    one, two = torch.tensor([1.0]), torch.tensor([2.0])
    assert relative_change([one, two], [one, one]) == 1.0
    assert relative_change([one], [one, one]) == INF
    assert relative_change([], []) == 0.0


def test_a_run_is_repeatable_if_it_is_finite_and_gives_the_same_twice():
    runs = []

    def counted(net, x):
        runs.append(x)
        return x + len(runs)

    def repeats(hidden):
        model = in_proof(hidden)
        output = run_or_none(model)
        return output is not None and is_repeatable(model, output)

    assert repeats(lambda n, x: x.relu())
    assert repeats(lambda n, x: x + torch.rand(8))  # one seed for all runs
    assert not repeats(lambda n, x: x / 0)
    assert not repeats(counted)
    other = in_proof(lambda n, x: x.relu())
    other.inputs = [(torch.ones(4, 5),)]
    assert run_or_none(other) is None


def test_attention_runs_without_its_fast_path():
    """It checks widths that zero-padded units do not have."""
    seen = []

    def note(net, x):
        seen.append(torch.backends.mha.get_fastpath_enabled())
        return x

    assert torch.backends.mha.get_fastpath_enabled()
    in_proof(note)
    assert seen == [False]
    assert torch.backends.mha.get_fastpath_enabled()
