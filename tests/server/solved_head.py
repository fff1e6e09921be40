"""Runs with a solved head on the in-process grid, and what came of them."""

import torch

from fedma_flwr import FedMA, load_model
from fedma_flwr.testing import InProcessGrid
from tests.toy import CLIENTS, SPEC, Net, data, initial_arrays, make_app

TWO_EXCHANGES = {
    "spec": SPEC,
    "head": "solved",
    "groups_per_stage": "all",
    "fraction_evaluate": 0.0,
}


def run(app=None, clients=CLIENTS, rounds=2, intercept=None, **options):
    strategy = FedMA(**{**TWO_EXCHANGES, **options})
    grid = InProcessGrid(app or make_app(steps=10), clients, intercept=intercept)
    strategy.result = strategy.start(grid, initial_arrays(), num_rounds=rounds)
    return strategy


def stages(strategy):
    return [record for record in strategy.history if record.name != "hello"]


def accuracy(arrays, clients=CLIENTS):
    model = load_model(Net(), arrays)
    right = [(model(x).argmax(1) == y).float().mean() for x, y in map(data, range(clients))]
    return float(torch.stack(right).mean())
