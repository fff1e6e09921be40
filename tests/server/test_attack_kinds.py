"""The benchmark's attacks are what they are called, by hand-computed cases."""

import pytest
import torch
from torch.utils.data import TensorDataset

from benchmarks.attack_kinds import ATTACKS, Attack, Scene, examples, lied_counts, set_detectors


def state(value):
    return {"w": torch.tensor([value, -value]), "head.weight": torch.full((10, 1), value)}


def scene(server_round=1):
    own = {**state(7.0), "head.weight": torch.arange(10.0).reshape(10, 1)}
    return Scene(state(1.0), own, [state(2.0), state(4.0)], seed=3, server_round=server_round)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ALIE, z = 0.5", [2.5, -3.5]),  # mean 3 and -3, deviation 1
        ("ALIE, z = 2", [1.0, -5.0]),
        ("inner product, 0.5 times", [0.0, 0.0]),  # from 1 the honest go on to 3: 1 - 0.5 * 2
        ("inner product, 2 times", [-3.0, 3.0]),
        ("signs flipped", [-7.0, 7.0]),
    ],
)
def test_what_is_sent(name, expected):
    assert ATTACKS[name].change(scene())["w"].tolist() == expected


def test_a_drift_goes_to_the_same_side_in_every_round():
    first, later = (ATTACKS["drift"].change(scene(number))["w"] for number in (1, 5))
    assert torch.equal(first, later)
    assert (first - torch.tensor([3.0, -3.0])).abs().tolist() == [1.0, 1.0]


def test_a_stolen_head_has_two_rows_exchanged():
    found = ATTACKS["stolen head"].change(scene())["head.weight"].flatten().tolist()
    assert found == [1.0, 0.0, *range(2, 10)]


def test_settled_tensors_stay_as_they_are():
    """Whoever changes them is dropped."""
    before = state(1.0)
    quiet = Scene(before, dict(before), [state(2.0), state(4.0)], seed=0, server_round=1)
    assert torch.equal(ATTACKS["ALIE, z = 0.5"].change(quiet)["w"], before["w"])


def test_labels_and_counts_are_lies_as_far_as_the_attack_says():
    share = TensorDataset(torch.zeros(4, 1, 14, 14), torch.tensor([0, 1, 2, 9]))

    def labels(attack, makes_head):
        return examples(attack, share, makes_head=makes_head).tensors[1].tolist()

    stolen = ATTACKS["stolen head"]
    assert labels(stolen, makes_head=True) == [1, 0, 2, 9]
    assert labels(stolen, makes_head=False) == [0, 1, 2, 9]
    assert labels(ATTACKS["labels c + 1"], makes_head=False) == [1, 2, 3, 0]
    assert labels(ATTACKS["backdoor units"], makes_head=True) == [0, 1, 0, 9]
    assert lied_counts(Attack(), [1, 2]) == (3, [1, 2])
    examples_, counts = lied_counts(ATTACKS["stolen head, counts of 2^53"], [1] * 10)
    assert (examples_, counts) == (2**53, [2**53] * 2 + [0] * 8)


def test_detectors_see_the_corner_alone_and_are_no_larger_than_other_units():
    weight = torch.ones(32, 196)
    found = set_detectors({"first.weight": weight}, 14)["first.weight"]
    assert int((found[0] > 0).sum()) == 9
    torch.testing.assert_close(found.norm(dim=1), weight.norm(dim=1))
    assert torch.equal(weight, torch.ones(32, 196))
