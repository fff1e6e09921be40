"""Runs of a user's subclass of FedMA, with each of the plans."""

from fedma_flwr import load_model
from fedma_flwr.testing import InProcessGrid
from tests.toy import CLIENTS, SPEC, Net, fit, initial_arrays, make_app, reply

PLANS = {
    "solved head": {},
    "layer by layer": {"groups_per_stage": 1, "head": "trained"},
    "one shot": {"one_shot": True},
}


def make(kind, plan=None, **options):
    return kind(spec=SPEC, fraction_evaluate=0.0, **(plan or {}), **options)


def run(strategy, seen=None, rounds=1, clients=CLIENTS, **options):
    """Run it; `seen` gets (client, stage, content) of every message to a train function."""

    def train(message, context, client):
        if seen is not None:
            seen.append((client, message.content["fedma"]["stage"], dict(message.content)))
        model = load_model(Net(), message)
        fit(model, client)
        return reply(message, model, client)

    grid = InProcessGrid(make_app(train), clients)
    return strategy.start(grid, initial_arrays(), num_rounds=rounds, **options)


def stages(strategy):
    return [record for record in strategy.history if record.name != "hello"]


def same(one, other):
    return all(one[name].data == other[name].data for name in other)
