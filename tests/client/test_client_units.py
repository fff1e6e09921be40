"""What a client keeps unit by unit, and brings along by itself."""

from functools import partial

import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, RecordDict
from torch import nn

from fedma_flwr import FedMA, client_units, follow_units, load_model
from fedma_flwr.protocol import ClientError
from fedma_flwr.testing import InProcessGrid
from tests.toy import CLIENTS, SPEC, Net, data, fit, initial_arrays, make_app, reply


@pytest.fixture(autouse=True)
def _nobody_has_been_told(monkeypatch):
    monkeypatch.setattr(client_units, "_TOLD", set())


def run(train, rounds=3, **arguments):
    arguments = {"max_growth": 1.0, "fraction_evaluate": 0.0, **arguments}
    strategy = FedMA(spec=SPEC, **arguments)
    strategy.start(InProcessGrid(make_app(train), CLIENTS), initial_arrays(), num_rounds=rounds)
    assert not any(exchange.dropped for exchange in strategy.history)
    return strategy


def is_first(message):
    return message.content["fedma"]["round"] == 1 and message.content["fedma"]["stage"] == 0


def shuffled(model, client):
    """The same model with its units in an order of the client's."""
    generator = torch.Generator().manual_seed(client)
    orders = {"a": torch.randperm(12, generator=generator), "b": torch.randperm(8)}
    with torch.random.fork_rng():
        torch.manual_seed(7)
        state = Net().state_dict()
    model.load_state_dict(SPEC.permute(state, orders))


@pytest.mark.parametrize(
    "plan", [{}, {"groups_per_stage": 1, "head": "trained"}, {"one_shot": True}]
)
def test_momentum_follows_its_units(plan):
    """Momentum that is the weights themselves can be checked against them."""
    checked = []

    def train(message, context, client):
        model = load_model(Net(), message)
        if is_first(message):
            shuffled(model, client)
        else:
            momentum = follow_units(context.state["momentum"], message, context)
            bias = follow_units(
                {"bias": context.state["momentum"].to_torch_state_dict()["a.bias"]},
                message,
                context,
                prefix="a.",
            )
            assert torch.equal(bias["bias"], momentum["a.bias"])
            assert torch.allclose(momentum["a.weight"], model.a.weight, atol=1e-5)
            assert torch.allclose(momentum["b.weight"], model.b.weight, atol=1e-5)
            checked.append(client)
        if "head-module" in message.content["fedma"]:
            nn.functional.cross_entropy(model(data(client)[0]), data(client)[1]).backward()
        state = {n: t for n, t in model.state_dict().items() if n[0] != "c"}
        context.state["momentum"] = ArrayRecord(state)
        return reply(message, model, client)

    strategy = run(train, initialisation="own", **plan)

    assert len(checked) == CLIENTS * (3 * len(strategy.settings.plan) - 1)


def restoring(message, context, client, *, shuffle=True):
    """As Flower's advanced example: every client puts its own last head back."""
    model = load_model(Net(), message)
    if is_first(message) and shuffle:
        shuffled(model, client)
    elif "head" in context.state and len(model.c.weight[0]) == 8:
        model.c.load_state_dict(context.state["head"].to_torch_state_dict())
    fit(model, client)
    context.state["head"] = ArrayRecord(model.c.state_dict())
    return reply(message, model, client)


def test_a_restored_head_that_no_longer_fits_is_noticed(caplog):
    run(restoring, initialisation="own", groups_per_stage=1, head="trained")

    assert caplog.text.count("context.state['head'] copied 'c.weight'") == 1
    assert "follow_units" in caplog.text
    assert "FedMA(personal=...)" in caplog.text


def test_a_head_that_is_copied_where_it_is_solved_is_noticed(caplog):
    run(restoring)

    assert "context.state['head'] copied the head in a stage in which it is zero" in caplog.text


def test_nothing_is_said_where_units_stay_or_are_followed(caplog):
    staying = partial(restoring, shuffle=False)  # a common start: units keep their places
    run(staying, groups_per_stage=1, head="trained")

    def following(message, context, client):
        model = load_model(Net(), message)
        if is_first(message):
            shuffled(model, client)
        else:
            head = follow_units(context.state["head"], message, context, prefix="c.")
            model.c.load_state_dict(head)
        fit(model, client)
        context.state["head"] = ArrayRecord(model.c.state_dict())
        return reply(message, model, client)

    run(following, initialisation="own", groups_per_stage=1, head="trained")

    assert "context.state" not in caplog.text


def test_what_cannot_be_followed():
    seen = []

    def train(message, context, client):
        model = load_model(Net(), message)
        saved = {"a.bias": torch.zeros(12)}
        if is_first(message):
            seen.append(follow_units(saved, message, context))
        elif message.content["fedma"].get("stage", 0):
            with pytest.raises(ClientError, match=r"has no tensors \['d'\].*prefix"):
                follow_units({"d": torch.zeros(1)}, message, context)
            with pytest.raises(ClientError, match=r"not of the client's last stage.*'a\.bias'"):
                follow_units({"a.bias": torch.zeros(1, 2)}, message, context)
        fit(model, client)
        return reply(message, model, client)

    run(train)

    assert seen == [None] * CLIENTS


def test_messages_of_other_strategies_change_nothing():
    InProcessGrid(make_app(), 1)
    message = Message(RecordDict({"arrays": initial_arrays()}), 100, "train")
    context = Context(1, 100, {}, RecordDict(), {})
    saved = {"a.bias": torch.arange(12.0)}

    assert torch.equal(follow_units(saved, message, context)["a.bias"], saved["a.bias"])
