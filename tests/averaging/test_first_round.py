"""In a first round no client is dropped because it came further than the others."""

import math

import pytest
import torch

from fedma_flwr.averaging import Averaging, ClientUpdate, Limits
from fedma_flwr.averaging.judging import judge
from fedma_flwr.averaging.limits import scaled_to_bounds
from fedma_flwr.structure import PermutationSpec
from tests.averaging.test_limits import NORMED
from tests.averaging.test_limits_in_runs import run
from tests.server.test_adversary import check_sound
from tests.toy import SPEC

WEIGHT = {"a.weight": torch.full((12, 2), 0.2)}


def weight(size, rows=1):
    tensor = torch.full((12, 2), 0.2)
    tensor[:rows] = size
    return ClientUpdate({"a.weight": tensor}, 1.0)


def judged(*updates, model=WEIGHT, first_round=True, spec=SPEC, ratio=10.0):
    return judge(
        spec,
        dict(enumerate(updates)),
        model,
        Limits(ratio),
        Averaging(),
        first_round=first_round,
    )


@pytest.mark.parametrize("size", [0.63, 0.64, 2.01, 5.0, -9.9])
def test_units_somewhat_too_large_are_made_as_large_as_allowed(size):
    kept, refused = judged(weight(0.2), weight(0.2), weight(size))
    assert not refused
    expected = torch.full((12, 2), 0.2)
    most = 0.2 * math.sqrt(10.0)
    expected[0] = size if abs(size) <= most else most * (1 if size > 0 else -1)
    torch.testing.assert_close(kept[2].tensors["a.weight"], expected, rtol=1e-5, atol=0)
    assert kept[2].tensors["a.weight"].dtype == torch.float32
    # Nobody judges a client by what it was made into.
    again, refused = judged(*kept.values(), first_round=False)
    assert not refused
    assert torch.equal(again[2].tensors["a.weight"], kept[2].tensors["a.weight"])


@pytest.mark.parametrize("size", [10.1, 1e6])
def test_what_no_training_makes_is_refused_in_a_first_round_too(size):
    kept, refused = judged(weight(0.2), weight(0.2), weight(size))
    assert refused.keys() == {2}
    assert "max_norm_ratio" in refused[2]
    assert kept.keys() == {0, 1}


def test_later_rounds_refuse_as_ever():
    _, refused = judged(weight(0.2), weight(0.2), weight(5.0), first_round=False)
    assert refused.keys() == {2}


def test_variances_single_numbers_and_integers():
    model = {"n.running_var": torch.full((2,), 0.25), "n.count": torch.tensor(3)}

    def variance(value):
        tensors = {"n.running_var": torch.tensor([0.25, value]), "n.count": torch.tensor(10**6)}
        return ClientUpdate(tensors, 1.0)

    kept, refused = judged(*map(variance, (0.25, 0.25, 400.0)), model=model, spec=NORMED)
    assert not refused
    assert kept[2].tensors["n.running_var"].tolist() == pytest.approx([0.25, 25.0], rel=1e-5)
    assert int(kept[2].tensors["n.count"]) == 10**6

    spec = PermutationSpec({"h": 2}, {"w": "h, 1", "scale": "", "none": "0, 2"})
    model = {"scale": torch.tensor(2.0), "none": torch.zeros(0, 2)}
    ends = [ClientUpdate({**model, "scale": torch.tensor(v)}, 1.0) for v in (2.0, 2.0, -70.0)]
    kept, refused = judged(*ends, model=model, spec=spec)
    assert not refused
    assert float(kept[2].tensors["scale"]) == pytest.approx(-20.0, rel=1e-5)


def test_without_a_bound_nothing_is_changed():
    updates = {0: weight(0.2), 1: weight(1e8)}
    bounded = scaled_to_bounds(SPEC, updates, WEIGHT, float("inf"))
    assert torch.equal(bounded[1].tensors["a.weight"], updates[1].tensors["a.weight"])
    assert scaled_to_bounds(SPEC, {}, WEIGHT, 10.0) == {}


def test_who_comes_further_takes_part_in_the_first_round_and_not_for_ever():
    """Two of six clients send units 25 times as large in every round."""
    strategy, result = run(lambda values, _: values * 25)
    firsts = [record for record in strategy.history if record.name == "local"]
    assert [sorted(record.dropped) for record in firsts] == [[], ["4", "5"]]
    check_sound(strategy, result, honest=4)
