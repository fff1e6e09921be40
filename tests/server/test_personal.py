"""Personal tensors: they stay with the client, in the client's units, through all stages."""

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.exception import AggregationError
from torch import nn

from fedma_flwr import FedMA, fedma_mod, load_model
from fedma_flwr.matching import Matching
from fedma_flwr.testing import InProcessGrid
from tests.toy import data, fit, reply

CLIENTS = 4


class Net(nn.Module):
    """Group a (6 units) with a batch norm, group b (5), head c."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(2, 6)
        self.bn = nn.BatchNorm1d(6)
        self.b = nn.Linear(6, 5)
        self.c = nn.Linear(5, 2)

    def forward(self, x):
        return self.c(torch.relu(self.b(torch.relu(self.bn(self.a(x))))))


def make_strategy(net=Net, **arguments):
    arguments = {"max_growth": 1.0, **arguments}
    return FedMA(model=net(), example_inputs=(torch.zeros(4, 2),), **arguments)


def run(strategy, train, *, rounds=3, evaluate=None, net=Net, intercept=None, mods=()):
    app = ClientApp(mods=[*mods, fedma_mod])

    @app.train()
    def train_function(message, context):
        client = context.node_config["partition-id"]
        torch.manual_seed(client)
        return train(message, context, client)

    @app.evaluate()
    def evaluate_function(message, context):
        client = context.node_config["partition-id"]
        if evaluate:
            evaluate(message, client)
        metrics = MetricRecord({"num-examples": 1, "accuracy": 1.0})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    grid = InProcessGrid(app, CLIENTS, intercept=intercept)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        arrays = ArrayRecord(net().state_dict())
    return strategy.start(grid, arrays, num_rounds=rounds), grid


class Apart:
    """Half of the clients' units become global units of their own."""

    output = "mean"

    def match(self, units, *, weights=None, max_width=None, seed=0):
        first = [0 if client % 2 else max_width - len(rows) for client, rows in enumerate(units)]
        own = tuple(np.arange(len(rows)) + at for rows, at in zip(units, first, strict=True))
        held = np.bincount(np.concatenate(own), minlength=max_width)
        return Matching(own, np.zeros((max_width, units[0].shape[1])), held, 1.0, 1)


class Marked:
    """Clients with the same units, each in an order of its own.

    A personal bias says whose it is and which unit's: it is the shared bias plus the client's mark.
    """

    def __init__(self):
        torch.manual_seed(1)
        self.base = Net().state_dict()
        self.base["a.bias"] = torch.arange(6.0)
        self.seen = []  # client, stage or "evaluate", whether all units fit

    def train(self, message, _, client):
        model = load_model(Net(), message)
        instruction = message.content["fedma"]
        if instruction["round"] == 1 and instruction.get("stage", 0) == 0:
            self.begin(model, client)
        self.check(model, client, "train")
        assert model.bn.weight.requires_grad or "head-module" in instruction
        if "head-module" in instruction:
            x, y = data(client)
            nn.functional.cross_entropy(model(x), y).backward()
        return reply(message, model, client)

    def begin(self, model, client):
        order = torch.randperm(6)
        state = {**model.state_dict(), **self.base}
        state["a.weight"], state["a.bias"] = state["a.weight"][order], state["a.bias"][order]
        state["b.weight"] = state["b.weight"][:, order]
        state["bn.bias"] = state["a.bias"] + 0.1 * (client + 1)
        model.load_state_dict(state)

    def check(self, model, client, where):
        mark = model.bn.bias - model.a.bias
        self.seen.append((client, where, bool((mark - 0.1 * (client + 1)).abs().max() < 1e-4)))

    def evaluate(self, message, client):
        self.check(load_model(Net(), message), client, "evaluate")


@pytest.mark.parametrize(
    "plan",
    [{}, {"groups_per_stage": 1}, {"one_shot": True}, {"groups_per_stage": 1, "head": "trained"}],
)
@pytest.mark.parametrize("initialisation", ["common", "own"])
def test_they_follow_their_units(plan, initialisation):
    marked = Marked()
    strategy = make_strategy(personal=("bn.*",), initialisation=initialisation, **plan)

    run(strategy, marked.train, evaluate=marked.evaluate)

    assert {client for client, _, _ in marked.seen} == set(range(CLIENTS))
    assert all(fits for _, _, fits in marked.seen), marked.seen
    assert sum(where == "evaluate" for _, where, _ in marked.seen) == 3 * CLIENTS


@pytest.mark.parametrize("plan", [{}, {"groups_per_stage": 1}])
def test_they_follow_their_units_through_rounds_without_their_client(plan):
    marked = Marked()
    strategy = make_strategy(
        personal=("bn.*",),
        fraction_train=0.5,
        min_train_nodes=2,
        min_available_nodes=CLIENTS,
        **plan,
    )
    started = set()

    def train(message, context, client):
        if message.content["fedma"].get("stage", 0) == 0 and client not in started:
            started.add(client)
            model = load_model(Net(), message)
            if message.content["fedma"]["round"] == 1:
                marked.begin(model, client)
            with torch.no_grad():
                model.bn.bias.copy_(model.a.bias + 0.1 * (client + 1))
            return reply(message, model, client)
        if client not in started:  # asked for moments only
            model = load_model(Net(), message)
            nn.functional.cross_entropy(model(data(client)[0]), data(client)[1]).backward()
            return reply(message, model, client)
        return marked.train(message, context, client)

    run(strategy, train, rounds=7, evaluate=lambda m, c: c in started and marked.evaluate(m, c))

    assert started == set(range(CLIENTS))
    assert all(fits for _, _, fits in marked.seen), marked.seen


def test_they_cross_once_and_are_never_sent_back():
    down, up = [], []

    def watch(message, context):
        for record in message.content.array_records.values():
            if record:  # a hello's is empty
                down.append((context.node_id, message.metadata.message_type, set(record)))

    def train(message, context, client):
        model = load_model(Net(), message)
        fit(model, client)
        return reply(message, model, client)

    def spy(message, context, call_next):
        reply = call_next(message, context)
        up.extend(name for record in reply.content.array_records.values() for name in record)
        return reply

    strategy = make_strategy(personal=("bn.*",), groups_per_stage=1, fraction_evaluate=0.0)
    run(strategy, train, intercept=watch, mods=(spy,))

    first = [names for _, _, names in down[:CLIENTS]]
    assert all(any(name.startswith("bn.") for name in names) for names in first)
    assert not [names for _, _, names in down[CLIENTS:] if any(n.startswith("bn.") for n in names)]
    assert up
    assert not [name for name in up if name.startswith("bn.")]


def test_a_client_trains_on_its_own_ones():
    seen = {}

    def train(message, context, client):
        model = load_model(Net(), message)
        stage = message.content["fedma"].get("stage", 0)
        if stage == 0 and client in seen:
            assert torch.equal(model.bn.weight, seen[client])
        fit(model, client)
        if stage == 0:
            seen[client] = model.bn.weight.detach().clone()
        return reply(message, model, client)

    result, _ = run(make_strategy(personal=("bn.*",)), train)

    assert len({float(weight.detach().sum()) for weight in seen.values()}) == CLIENTS
    weights = result.arrays.to_torch_state_dict()
    assert torch.equal(weights["bn.weight"], torch.ones(6))
    assert float(weights["bn.num_batches_tracked"]) == 0


def test_a_personal_head_has_no_stage():
    heads = {}

    def train(message, context, client):
        model = load_model(Net(), message)
        if client in heads:
            assert torch.equal(model.c.weight, heads[client])
        fit(model, client)
        heads[client] = model.c.weight.detach().clone()
        return reply(message, model, client)

    strategy = make_strategy(personal=("c.*", "bn.*"))
    result, _ = run(strategy, train)

    assert len(strategy.settings.plan) == 1
    assert strategy.settings.solver is None
    assert len(result.train_metrics_clientapp) == 3
    with pytest.raises(ValueError, match=r"head was 'solved'.*c\.weight.*not shared"):
        make_strategy(personal=("c.*",), head="solved")


def test_grown_units_have_the_initial_values_of_others():
    def train(message, context, client):
        model = load_model(Net(), message)
        if message.content["fedma"].get("stage", 0) == 0:
            assert model.a.out_features == 6
        fit(model, client)
        return reply(message, model, client)

    def evaluate(message, client):
        model = load_model(Net(), message)
        assert model.a.out_features == 9
        # Units that the client lacks are switched off, as they are in its moments.
        assert int((model.bn.weight == 0).sum()) == model.a.out_features - 6

    strategy = make_strategy(personal=("bn.*",), max_growth=1.5, matcher=Apart())
    result, _ = run(strategy, train, evaluate=evaluate)
    weights = result.arrays.to_torch_state_dict()

    assert len(weights["a.weight"]) == len(weights["bn.weight"]) == 9
    assert torch.equal(weights["bn.weight"], torch.ones_like(weights["bn.weight"]))
    load_model(Net(), result.arrays)


def test_a_client_that_has_lost_all_begins_with_the_initial_ones():
    def forget(message, context):
        record = message.content.config_records["fedma"]
        if record["kind"] != "hello" and record.get("round", 0) == 2 and not forgotten:
            forgotten.append(context.node_id)
            context.state.clear()

    def train(message, context, client):
        model = load_model(Net(), message)
        starts.append((context.node_id, message.content["fedma"]["round"], model.bn.weight.clone()))
        fit(model, client)
        return reply(message, model, client)

    forgotten, starts = [], []
    strategy = make_strategy(personal=("bn.*",), groups_per_stage=1, fraction_evaluate=0.0)
    run(strategy, train, intercept=forget)

    after = [w for node, number, w in starts if number == 2 and node in forgotten]
    assert torch.equal(after[0], torch.ones(6))
    assert not any(exchange.dropped for exchange in strategy.history)


@pytest.mark.parametrize(
    ("personal", "words"),
    [
        (("norm.*",), r"personal was .*'norm\.\*' matches no tensor"),
        (("*.bn*",), r"tensors with 'bn' in their names are .*write '\*bn\*'"),
        ("bn.*", "personal was 'bn.*'; it must be a tuple"),
        ((3,), "personal was .*; it must be a tuple"),
        (("*",), "every tensor"),
    ],
)
def test_what_names_no_tensor_is_refused(personal, words):
    with pytest.raises(ValueError, match=words):
        make_strategy(personal=personal)


def test_a_reply_without_them_is_an_error_that_says_what_to_write():
    def train(message, context, client):
        model = load_model(Net(), message)
        state = {n: t for n, t in model.state_dict().items() if not n.startswith("c.")}
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": ArrayRecord(state), "m": metrics}), reply_to=message)

    with pytest.raises(
        AggregationError, match=r"lacks the tensors \['c.weight', 'c.bias'\].*personal="
    ):
        run(make_strategy(), train)
