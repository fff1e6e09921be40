"""Initial arrays with some of the model's tensors only: the rest stays with the clients."""

import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from fedma_flwr import FedMA, fedma_mod, load_model
from fedma_flwr.structure import SpecError
from fedma_flwr.testing import InProcessGrid
from tests.toy import data, fit

CLIENTS = 3


class Adapted(nn.Module):
    """A frozen layer with an adapter of low rank."""

    def __init__(self, inputs, outputs, rank=2):
        super().__init__()
        self.base = nn.Linear(inputs, outputs).requires_grad_(False)
        self.lora_A = nn.Linear(inputs, rank, bias=False)
        self.lora_B = nn.Linear(rank, outputs, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x):
        return self.base(x) + 2.0 * self.lora_B(self.lora_A(x))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)  # the pretrained base
            self.a, self.b, self.c = Adapted(2, 8), Adapted(8, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


BASE = {name for name in Net().state_dict() if "base" in name}
HEAD = {"c.weight", "c.bias"}


def some(state, absent):
    return {name: tensor for name, tensor in state.items() if name not in absent}


def run(strategy, absent, *, whole=False, rounds=2, initial=None):
    crossed = set()
    app = ClientApp(mods=[spy(crossed), fedma_mod])

    @app.train()
    def train(message, context):
        model = load_model(Net(), message)
        for name, parameter in model.named_parameters():
            if name in absent:
                parameter.requires_grad_(False)
        client = context.node_config["partition-id"]
        fit(model, client)
        state = model.state_dict()
        arrays = ArrayRecord(state if whole else some(state, absent))
        metrics = MetricRecord({"num-examples": 60})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        model = load_model(Net(), message)
        assert torch.equal(model.a.base.weight, Net().a.base.weight)
        x, y = data(context.node_config["partition-id"])
        accuracy = float((model(x).argmax(1) == y).float().mean())
        metrics = MetricRecord({"num-examples": 60, "accuracy": accuracy})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    initial = some(Net().state_dict(), absent) if initial is None else initial
    result = strategy.start(InProcessGrid(app, CLIENTS), ArrayRecord(initial), num_rounds=rounds)
    return result, crossed


def spy(crossed):
    def watch(message, context, call_next):
        reply = call_next(message, context)
        for content in (message.content, reply.content):
            crossed.update(name for record in content.array_records.values() for name in record)
        return reply

    return watch


def make_strategy(**arguments):
    return FedMA(model=Net(), example_inputs=(torch.zeros(4, 2),), **arguments)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("head", ["auto", "trained"])
def test_adapters_alone_are_sent_and_matched_by_their_ranks(head, whole):
    strategy = make_strategy(head=head)
    result, crossed = run(strategy, BASE, whole=whole)

    # What fedma_mod puts into a message, and what the strategy is given, are of the shared ones.
    assert not crossed & BASE
    assert set(result.arrays) == set(Net().state_dict()) - BASE
    assert set(strategy.settings.spec.groups) == {"a.lora_A", "b.lora_A"}
    assert len(result.evaluate_metrics_clientapp) == 2
    with pytest.raises(SpecError, match=r"lacks tensors.*strict=False"):
        load_model(Net(), result.arrays)
    loaded = load_model(Net(), result.arrays, strict=False)
    assert torch.equal(loaded.a.base.weight, Net().a.base.weight)


def test_units_of_a_tensor_that_is_missing_are_not_matched():
    strategy = make_strategy(max_growth=3.0)
    run(strategy, {"a.base.bias"}, rounds=1)

    assert "a.base" not in strategy.settings.spec.groups
    assert "b.base" in strategy.settings.spec.groups


@pytest.mark.parametrize(("head", "stage"), [("solved", "head"), ("trained", "local")])
def test_a_head_on_a_frozen_base_takes_one_exchange(head, stage):
    strategy = make_strategy(head=head)
    result, crossed = run(strategy, set(Net().state_dict()) - HEAD)

    assert set(result.arrays) == HEAD
    assert crossed - {"head.gram", "head.cross"} == HEAD
    assert [record.name for record in strategy.history][1:] == [stage] * 2


def test_adapters_and_personal_tensors_go_together():
    strategy = make_strategy(personal=("c.*", "*.base.*"))
    _, crossed = run(strategy, BASE, whole=True)

    assert strategy.settings.personal == ("c.weight", "c.bias")
    assert not crossed & BASE


def test_the_next_run_may_have_all_tensors():
    strategy = make_strategy()
    run(strategy, BASE, rounds=1)
    run(strategy, set(), rounds=1)

    assert set(strategy.settings.spec.axes) == set(Net().state_dict())
    with pytest.raises(SpecError, match="none of the model's tensors"):
        run(strategy, set(), initial={"x": torch.zeros(1)})
