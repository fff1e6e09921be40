"""Moments of clients that are away: what they sent before stands in for them."""

import pytest
import torch

from fedma_flwr import FedMA
from fedma_flwr.averaging import ClientUpdate
from fedma_flwr.averaging.head_moments import HeadMoments
from fedma_flwr.server.checkpoints import Checkpoint, CheckpointFolder
from fedma_flwr.server.global_model import GlobalModel
from fedma_flwr.server.remembered import RememberedMoments, remember, stand_ins
from fedma_flwr.testing import InProcessGrid
from tests.toy import CLIENTS, SPEC, initial_arrays, make_app


def moments(value, inputs=2, *, expected=True):
    cross = torch.full((3, inputs + 1), value)
    gram = torch.full((inputs * (inputs + 1) // 2,), value)
    return HeadMoments(gram, cross, cross + 1 if expected else None)


def kept(server_round, value=1.0, **kwargs):
    return RememberedMoments(server_round, 5.0, moments(value, **kwargs))


def test_who_is_away_is_stood_in_for_by_what_it_sent_last():
    found = stand_ins({"a": kept(1, 2.0), "b": kept(2, 3.0)}, {"a"}, (2, 3))
    assert [float(update.moments.gram[0]) for update in found] == [3.0]
    assert found[0].examples == 5.0


def test_moments_of_fewer_units_stand_in_for_nobody():
    assert stand_ins({"a": kept(1)}, (), (3, 3)) == []
    assert stand_ins({"a": kept(1)}, (), None) == []


def test_the_last_ones_are_kept_for_as_many_rounds_as_was_said():
    before = {"old": kept(1), "b": kept(3, 2.0), "a": kept(2)}
    sent = [("b", ClientUpdate({}, 7.0, moments=moments(9.0))), ("none", ClientUpdate({}, 1.0))]
    after = remember(before, sent, server_round=4, memory=3)
    assert list(after) == ["a", "b"]
    assert (after["a"].round, after["b"].round, after["b"].examples) == (2, 4, 7.0)
    assert remember(before, sent, server_round=4, memory=0) == {}


def run(memory, rounds=4, **options):
    strategy = FedMA(
        spec=SPEC,
        fraction_train=0.5,
        fraction_evaluate=0.0,
        head_fraction=0.0,
        head_memory=memory,
        seed=2,
        **options,
    )
    strategy.start(InProcessGrid(make_app(), CLIENTS), initial_arrays(), num_rounds=rounds)
    return strategy._model


def test_a_run_remembers_the_clients_of_earlier_cohorts():
    model = run(3)
    assert 2 < len(model.remembered) <= CLIENTS
    assert len({own.round for own in model.remembered.values()}) > 1
    assert run(0).remembered == {}
    assert not torch.equal(model.tensors["c.weight"], run(0).tensors["c.weight"])


def test_a_run_that_is_resumed_remembers_too(tmp_path):
    whole = run(3)
    run(3, rounds=2, checkpoint_dir=tmp_path)
    resumed = run(3, checkpoint_dir=tmp_path, resume=True)
    for name, tensor in whole.tensors.items():
        assert torch.equal(tensor, resumed.tensors[name])
    assert whole.remembered.keys() == resumed.remembered.keys()


@pytest.mark.parametrize("expected", [True, False])
def test_a_checkpoint_holds_them(tmp_path, expected):
    model = GlobalModel(
        {"w": torch.ones(2)}, remembered={"é": kept(3, 2.0, expected=expected), "b": kept(2)}
    )
    checkpoints = CheckpointFolder(tmp_path, {})
    checkpoints.save(Checkpoint(1, model))
    read = checkpoints.latest().model.remembered
    assert list(read) == ["é", "b"]
    for key, own in model.remembered.items():
        assert (read[key].round, read[key].examples) == (own.round, own.examples)
        for name, tensor in own.moments.named().items():
            assert torch.equal(read[key].moments.named()[name], tensor)
    assert (read["é"].moments.expected is None) is not expected


@pytest.mark.parametrize("wrong", [-1, 1.5, "two"])
def test_a_memory_that_is_no_number_of_rounds_is_refused(wrong):
    with pytest.raises((ValueError, TypeError), match="head_memory"):
        FedMA(spec=SPEC, head_memory=wrong)
