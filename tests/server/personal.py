"""A small network with personal tensors, and how it is trained."""

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from fedma_flwr import FedMA, fedma_mod
from fedma_flwr.testing import InProcessGrid

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
