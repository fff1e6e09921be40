"""A small network with batch norm, and how FedMA trains it."""

import torch
from flwr.app import ArrayRecord
from torch import nn

from fedma_flwr import load_model
from fedma_flwr.structure import derive_spec
from fedma_flwr.testing import InProcessGrid
from tests.toy import CLIENTS, fit, make_app, reply


class Normed(nn.Module):
    """Two hidden layers with batch norm: groups a (12 units) and b (8), head c."""

    def __init__(self):
        super().__init__()
        self.a, self.na = nn.Linear(2, 12, bias=False), nn.BatchNorm1d(12)
        self.b, self.nb = nn.Linear(12, 8, bias=False), nn.BatchNorm1d(8)
        self.c = nn.Linear(8, 2)

    def forward(self, x):
        return self.c(torch.relu(self.nb(self.b(torch.relu(self.na(self.a(x)))))))


SPEC = derive_spec(Normed(), (torch.zeros(4, 2),))


STATISTICS = ("na.running_mean", "na.running_var", "nb.running_mean", "nb.running_var")


def train(message, context, client):
    model = load_model(Normed(), message)
    model.train()
    fit(model, client, steps=4)
    return reply(message, model, client)


def run(strategy, function=train, rounds=1, evaluate=None, **grid_options):
    grid = InProcessGrid(make_app(function), CLIENTS, **grid_options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        arrays = ArrayRecord(Normed().state_dict())
    strategy.fraction_evaluate = 0.0
    return strategy.start(grid, arrays, num_rounds=rounds, evaluate_fn=evaluate)


def stage_records(strategy):
    return [record for record in strategy.history if record.name != "hello"]
