"""Parameters that `forward` does not reach, and inputs by keyword."""

import pytest
import torch
from torch import nn

from fedma_flwr import FedMA
from fedma_flwr.structure import derive_spec
from fedma_flwr.structure.not_reached import not_reached


class Autoencoder(nn.Module):
    """As Lightning's: `forward` is the encoder, the loss is taken behind the decoder."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 3))
        self.decoder = nn.Sequential(nn.Linear(3, 7), nn.ReLU(), nn.Linear(7, 4))

    def forward(self, x):
        return self.encoder(x)


class WithOriginals(nn.Module):
    """As PEFT wraps a module: the original lies unused inside."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 9)
        self.c = nn.ModuleDict({"original": nn.Linear(9, 3).requires_grad_(False)})
        self.c["own"] = nn.Linear(9, 3)

    def forward(self, x):
        return self.c["own"](self.a(x).relu())


X = (torch.zeros(2, 4),)


def test_they_have_no_groups_and_the_others_have_theirs():
    spec = derive_spec(Autoencoder(), X)

    assert dict(spec.sizes) == {"encoder.0": 9}
    assert not_reached(spec) == [n for n in spec.axes if n.startswith("decoder")]
    assert spec.head == ("encoder.2.weight", "encoder.2.bias")


def test_what_is_frozen_and_unused_is_told_apart():
    spec = derive_spec(WithOriginals(), X)

    assert not_reached(spec) == ["c.original.weight", "c.original.bias"]
    assert not_reached(spec, trainable_only=True) == []
    assert spec.head == ("c.own.weight", "c.own.bias")
    assert FedMA(model=WithOriginals(), example_inputs=X).settings.solver is not None


def test_the_log_says_how_they_are_treated(caplog):
    caplog.set_level("INFO", logger="flwr")
    strategy = FedMA(model=Autoencoder(), example_inputs=X)

    assert strategy.settings.solver is None
    assert "forward does not reach 4 of the model's parameters (decoder.0.weight" in caplog.text
    assert "The head is trained" in caplog.text
    strategy = FedMA(model=Autoencoder(), example_inputs=X, head="trained", personal=("decoder.*",))
    assert len(strategy.settings.personal) == 4


class Text(nn.Module):
    """A classifier of token ids that wants a mask by name."""

    def __init__(self):
        super().__init__()
        self.table, self.hidden, self.head = nn.Embedding(11, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, input_ids, labels=None, *, attention_mask):
        mask = attention_mask.unsqueeze(-1).to(self.head.weight.dtype)
        states = self.hidden(self.table(input_ids)).relu() + (1 - mask) * -1e30
        return {"logits": self.head(states.amax(1))}


@pytest.mark.parametrize("first", [0, 3])
def test_inputs_may_be_keyword_arguments(first):
    ids, mask = torch.full((2, 5), first), torch.ones(2, 5, dtype=torch.long)
    spec = derive_spec(Text(), {"input_ids": ids, "attention_mask": mask})

    assert dict(spec.sizes) == {"table": 8, "hidden": 6}
    assert FedMA(
        model=Text(), example_inputs={"input_ids": ids, "attention_mask": mask}, spec=spec
    ).settings.solver
