"""Personal running statistics (FedBN): kept by the client, in its units, used when it evaluates."""

import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

from fedma_flwr import load_model
from tests.server.personal import CLIENTS, Net, make_strategy, run

UNITS = 6


def base():
    """Units that differ much, so that there is one right matching."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        net = Net()
        for parameter in net.parameters():
            parameter.data.normal_(std=2.0)
    return net


def order_of(client):
    return torch.randperm(UNITS, generator=torch.Generator().manual_seed(client + 50))


def shuffled(client):
    """The base network with group a in another order, and statistics that name each unit."""
    state, order = base().state_dict(), order_of(client)
    for name in (
        "a.weight",
        "a.bias",
        *(n for n in state if n.startswith("bn.") and state[n].dim()),
    ):
        state[name] = state[name][order]
    state["b.weight"] = state["b.weight"][:, order]
    state["bn.running_mean"] = 100.0 * (client + 1) + order
    state["bn.running_var"] = 1000.0 * (client + 1) + order
    return state


def units_of(model):
    """Which units of the base a model's are, by their incoming weights."""
    return torch.cdist(model.a.weight.detach(), base().a.weight.detach()).argmin(1)


@pytest.mark.parametrize("plan", [1, "all"])
@pytest.mark.parametrize("personal", [("bn.*",), ("bn.running_*", "bn.num_batches_tracked")])
def test_they_stay_with_the_client_follow_its_units_and_are_used_in_evaluation(plan, personal):
    evaluated, crossed, first = [], [], set()

    def train(message, context, client):
        net = Net()
        if client not in first:
            first.add(client)
            net.load_state_dict(shuffled(client))
        model = load_model(net, message)  # nothing is learned: units stay what they are
        state = model.state_dict()
        content = {"arrays": ArrayRecord(state), "m": MetricRecord({"num-examples": 1})}
        return Message(RecordDict(content), reply_to=message)

    def spy(message, context, call_next):
        reply = call_next(message, context)
        crossed.extend(n for record in reply.content.array_records.values() for n in record)
        return reply

    def evaluate(message, client):
        model = load_model(Net(), message)
        units, bn = units_of(model), model.bn
        evaluated.append((client, units, bn.running_mean.clone(), bn.running_var.clone()))
        x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
        model.eval()
        by_hand = (model.a(x) - bn.running_mean) / (bn.running_var + bn.eps).sqrt()
        torch.testing.assert_close(bn(model.a(x)), by_hand * bn.weight + bn.bias)

    strategy = make_strategy(
        personal=personal, groups_per_stage=plan, head="trained", initialisation="own"
    )
    run(strategy, train, evaluate=evaluate, mods=(spy,), rounds=2)
    assert len(evaluated) == 2 * CLIENTS
    orders = set()
    for client, units, mean, variance in evaluated:
        assert sorted(units.tolist()) == list(range(UNITS))
        assert torch.equal(mean, 100.0 * (client + 1) + units)
        assert torch.equal(variance, 1000.0 * (client + 1) + units)
        orders.add(tuple(units.tolist()))
    moved = [c for c in range(CLIENTS) if tuple(order_of(c).tolist()) not in orders]
    assert moved  # clients whose units, and with them statistics, have changed places
    assert crossed
    assert not [name for name in crossed if name.startswith("bn.running")]
