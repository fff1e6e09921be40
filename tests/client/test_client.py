"""What a train function uses: models that are loaded and frozen, stages, terms and counts."""

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from torch import nn

from fedma_flwr import Stage, load_model, proximal_term
from fedma_flwr.protocol import ClientError, Instruction, to_arrays
from fedma_flwr.testing import InProcessGrid
from tests.toy import Net, make_app


@pytest.fixture(autouse=True)
def _run():
    """Flower makes no messages outside a run."""
    InProcessGrid(make_app(), 1)


def message(instruction=None, tensors=None, **records):
    """A message as a train function gets it."""
    content = {name: record for name, record in records.items() if record is not None}
    if instruction is not None:
        content["fedma"] = instruction.to_record()
    if tensors is not None:
        content["arrays"] = to_arrays(tensors)
    return Message(RecordDict(content), 100, "train")


def ones():
    return {name: torch.ones_like(tensor) for name, tensor in Net().state_dict().items()}


# ---------------------------------------------------------------- loading


def test_a_state_dict_arrays_and_a_message_give_the_same_model():
    tensors = ones()
    sources = (tensors, to_arrays(tensors), message(tensors=tensors))
    for source in sources:
        model = Net()
        assert load_model(model, source) is model
        assert all(torch.equal(t, tensors[n]) for n, t in model.state_dict().items())
        assert all(parameter.requires_grad for parameter in model.parameters())


def test_what_is_settled_is_frozen_and_nothing_else():
    instruction = Instruction("update", stage=1, settled=("a.weight", "a.bias"), merged=True)
    model = load_model(Net(), message(instruction, ones()))
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"a.weight", "a.bias"}


class Tied(nn.Module):
    """One weight under two names."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.b.weight = self.a.weight


def test_a_tied_weight_is_frozen_by_either_name():
    weights = {"a.weight": torch.ones(3, 3), "b.weight": torch.ones(3, 3)}
    for name in weights:
        instruction = Instruction("update", stage=1, settled=(name,), merged=True)
        model = load_model(Tied(), message(instruction, weights))
        assert not model.a.weight.requires_grad


@pytest.mark.parametrize("wrapped", [True, False])
def test_settled_statistics_are_kept_in_training_too(wrapped):
    model = nn.Sequential(nn.BatchNorm1d(2)) if wrapped else nn.BatchNorm1d(2)
    prefix = "0." if wrapped else ""
    settled = (f"{prefix}running_mean", f"{prefix}running_var")
    instruction = Instruction("update", stage=1, settled=settled, merged=True)
    load_model(model, message(instruction, model.state_dict()))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    model(5 + torch.randn(8, 2))
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_without_arrays_the_model_is_left_as_it_is():
    model = Net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    load_model(model, message(Instruction("full", merged=True)))
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_a_message_that_the_mod_has_not_seen_is_named():
    for tensors in (ones(), None):
        with pytest.raises(ClientError, match=r"fedma_mod has not prepared this message.*mods="):
            load_model(Net(), message(Instruction("full"), tensors))


@pytest.mark.parametrize("count", [0, 2])
def test_a_message_must_have_one_set_of_arrays(count):
    records = {f"arrays{i}": to_arrays(ones()) for i in range(count)}
    with pytest.raises(ClientError, match=f"has {count} ArrayRecords; load_model needs one"):
        load_model(Net(), message(**records))
    if count:
        with pytest.raises(ClientError, match=f"has {count} ArrayRecords; .*called 'arrays'"):
            load_model(Net(), message(Instruction("full", merged=True), **records))


# ---------------------------------------------------------------- stages


def test_a_stage_of_fedma():
    instruction = Instruction(
        "update", round=4, stage=1, stages=3, name="retrain", settled=("a.weight", "a.bias")
    )
    config = ConfigRecord({"local-epochs": 5, "lr": 1, "server-round": 9})
    stage = Stage.from_message(message(instruction, ones(), config=config))
    assert (stage.round, stage.index, stage.count, stage.name) == (4, 1, 3, "retrain")
    assert stage.frozen == ("a.weight", "a.bias")
    assert stage.trainable == ("b.weight", "b.bias", "c.weight", "c.bias")
    assert (stage.epochs, stage.lr) == (5, 1.0)
    assert isinstance(stage.lr, float)


def test_a_message_of_another_strategy_is_one_local_stage():
    config = ConfigRecord({"server-round": 7})
    stage = Stage.from_message(message(tensors=ones(), config=config))
    assert (stage.round, stage.index, stage.count, stage.name) == (7, 0, 1, "local")
    assert (stage.frozen, stage.trainable) == ((), tuple(ones()))
    assert (stage.epochs, stage.lr) == (None, None)
    assert Stage.from_message(message()).round == 0


def test_zero_is_a_number_of_epochs_and_a_rate():
    config = ConfigRecord({"local-epochs": 0, "lr": 0.0})
    stage = Stage.from_message(message(config=config))
    assert (stage.epochs, stage.lr) == (0, 0.0)


def test_fedmas_own_record_is_no_config():
    """An instruction has a round too; the user's records are the others, whatever their names."""
    instruction = Instruction("full", name="local")
    records = {"mine": ConfigRecord({"lr": 0.5}), "yours": ConfigRecord({"local-epochs": 2})}
    stage = Stage.from_message(message(instruction, **records))
    assert (stage.epochs, stage.lr, stage.trainable) == (2, 0.5, ())


# ---------------------------------------------------------------- terms and counts


def test_the_proximal_term_is_of_trainable_parameters_only():
    model = Net()
    reference = {name: p.detach() - 2.0 for name, p in model.named_parameters()}
    model.a.requires_grad_(False)
    numbers = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert numbers == 8 * 12 + 8 + 2 * 8 + 2
    assert proximal_term(model, 0.25, reference).item() == pytest.approx(0.125 * 4 * numbers)
    assert proximal_term(model, 0.0, reference).item() == 0.0


def test_an_array_record_of_another_model_is_refused():
    with pytest.raises(ValueError, match="weight"):
        load_model(Net(), ArrayRecord({"weight": torch.ones(2)}))
