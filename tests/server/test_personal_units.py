"""Personal tensors follow their units: through matching, growth and rounds that are missed."""

import numpy as np
import pytest
import torch
from torch import nn

from fedma_flwr import load_model
from fedma_flwr.matching import Matching
from tests.server.personal import CLIENTS, Net, make_strategy, run
from tests.toy import data, fit, reply


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
