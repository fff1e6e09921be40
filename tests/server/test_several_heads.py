"""Class counts belong to the head that they are about, in models with one output and several."""

import logging
import re

import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from fedma_flwr import FedMA, fedma_mod, load_model
from fedma_flwr.server.reply_metrics import consistent_metrics
from fedma_flwr.structure.output_heads import has_several_heads, head_layers
from fedma_flwr.testing import InProcessGrid

INPUTS = (torch.zeros(3, 2),)


class Heads(nn.Module):
    """One layer below several heads; `join` makes the output of theirs."""

    def __init__(self, join=tuple, **widths):
        super().__init__()
        self.a = nn.Linear(2, 12)
        self.heads = nn.ModuleDict({name: nn.Linear(12, width) for name, width in widths.items()})
        self.join = join

    def forward(self, x):
        hidden = self.a(x).relu()
        return self.join(head(hidden) for head in self.heads.values())


def detector():
    return Heads(cls=4, box=4)


def run(make, counts, *, spec_only=False, clients=2):
    """The model after a round in which client c sends c + 1 everywhere, with `counts(c)`."""
    app = ClientApp(mods=[fedma_mod])

    @app.train()
    def train(message, context):
        client = context.node_config["partition-id"]
        model = load_model(make(), message)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.fill_(client + 1.0)
        metrics = MetricRecord({"num-examples": 60, **counts(client)})
        records = {"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}
        return Message(RecordDict(records), reply_to=message)

    strategy = FedMA(model=make(), example_inputs=INPUTS, fraction_evaluate=0.0, head="trained")
    if spec_only:
        strategy = FedMA(spec=strategy.settings.spec, fraction_evaluate=0.0, head="trained")
    initial = ArrayRecord(make().state_dict())
    result = strategy.start(InProcessGrid(app, clients), initial, num_rounds=2)
    return strategy, result.arrays.to_torch_state_dict()


def halves(client, key="class-counts"):
    return {key: [60, 60, 0, 0] if client == 0 else [0, 0, 60, 60]}


@pytest.fixture
def warnings(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    caplog.set_level(logging.WARNING, "flwr")
    return lambda: [r.getMessage() for r in caplog.records if "class-counts" in r.getMessage()]


@pytest.mark.parametrize("spec_only", [False, True])
def test_counts_without_a_name_belong_to_none_of_several_heads(warnings, spec_only):
    _, state = run(detector, halves, spec_only=spec_only)

    assert state["heads.cls.bias"].tolist() == state["heads.box.bias"].tolist() == [1.5] * 4
    (warning,) = warnings()
    assert "heads.cls, heads.box" in warning
    assert "'class-counts.heads.cls'" in warning


def test_counts_with_a_name_belong_to_that_head_alone(warnings):
    _, state = run(detector, lambda c: halves(c, "class-counts.heads.cls"))

    assert state["heads.cls.bias"].tolist() == [1.0, 1.0, 2.0, 2.0]
    assert state["heads.cls.weight"][:, 0].tolist() == [1.0, 1.0, 2.0, 2.0]
    assert state["heads.box.bias"].tolist() == [1.5] * 4
    assert warnings() == []


def test_each_head_has_counts_of_its_own():
    def counts(client):
        two = {"class-counts.heads.two": [0, 60] if client == 0 else [60, 0]}
        return {**halves(client, "class-counts.heads.one"), **two}

    _, state = run(lambda: Heads(one=4, two=2), counts)

    assert state["heads.one.bias"].tolist() == [1.0, 1.0, 2.0, 2.0]
    assert state["heads.two.bias"].tolist() == [2.0, 1.0]


def test_one_output_takes_counts_with_and_without_a_name():
    for key in ("class-counts", "class-counts.heads.cls"):
        _, state = run(lambda: Heads(next, cls=4), lambda c, key=key: halves(c, key))
        assert state["heads.cls.bias"].tolist() == [1.0, 1.0, 2.0, 2.0]


def test_layers_that_are_added_up_make_one_output():
    def make():
        return Heads(sum, wide=4, deep=4)

    strategy, state = run(make, halves)

    assert not strategy.settings.several_heads
    assert state["heads.wide.bias"].tolist() == [1.0, 1.0, 2.0, 2.0]
    assert state["heads.deep.bias"].tolist() == [1.0, 1.0, 2.0, 2.0]


def test_outputs_side_by_side_in_one_tensor_are_several():
    model = Heads(lambda outputs: torch.cat(list(outputs), 1), cls=4, box=4)
    spec = FedMA(model=detector(), example_inputs=INPUTS, head="trained").settings.spec

    assert head_layers(spec) == ("heads.cls", "heads.box")
    assert has_several_heads(spec, model, INPUTS)
    assert has_several_heads(spec, Heads(lambda _: 1 / 0, cls=4, box=4), INPUTS)
    assert not has_several_heads(spec, Heads(lambda o: {"logits": sum(o)}, cls=4, box=4), INPUTS)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("class-counts.heads.class", [1, 1, 1, 1], "names no head.*heads.cls, heads.box"),
        ("class-counts.heads.box", [1, 1, 1], "3 counts; 'heads.box.weight' has 4"),
        ("class-counts.heads.box", [1, 1, 1, -1], "must be a list"),
        ("class-counts.heads.box", 4, "must be a list"),
        ("class-counts.a", [1] * 12, "names no head"),
    ],
)
def test_counts_that_fit_no_head_are_refused(key, value, said):
    strategy, _ = run(detector, lambda c: {key: value} if c == 0 else {}, clients=3)

    reasons = [r for e in strategy.history.exchanges for r in e.dropped.values()]
    assert reasons
    assert all(re.search(said, reason) for reason in reasons)


def test_one_client_cannot_keep_a_head_from_being_averaged_by_class():
    def counts(client):
        return {} if client == 2 else halves(client, "class-counts.heads.cls")

    _, state = run(detector, counts, clients=3)

    # Client 2's examples count as spread over all classes: 15 of each, beside the others' 60.
    expected = torch.tensor([105.0, 105.0, 165.0, 165.0]) / 75
    assert torch.allclose(state["heads.cls.bias"], expected)
    assert state["heads.box.bias"].tolist() == [2.0] * 4


def test_counts_are_no_metrics_of_the_round():
    kinds = ("class-counts", "class-counts.x")
    records = [MetricRecord({"loss": 1.0, **{kind: [c] for kind in kinds}}) for c in (1, 2)]

    assert [dict(r["metrics"]) for r in consistent_metrics(records)] == [{"loss": 1.0}] * 2
