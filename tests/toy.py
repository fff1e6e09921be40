"""A problem that trains in milliseconds, and a ClientApp for it, made to order."""

from functools import partial

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from fedma_flwr import FedMA, class_counts, fedma_mod, load_model
from fedma_flwr.structure import sequential_spec

CLIENTS = 4
#: The plan with the most stages, which tests of the protocol are about.
LayerwiseFedMA = partial(FedMA, groups_per_stage=1, head="trained")


class Net(nn.Module):
    """Two hidden layers: groups a (12 units) and b (8), head c."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(2, 12)
        self.b = nn.Linear(12, 8)
        self.c = nn.Linear(8, 2)

    def forward(self, x):
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


SPEC = sequential_spec(Net())


def initial_arrays():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ArrayRecord(Net().state_dict())


def data(client):
    """Whether two coordinates have the same sign, seen from a client's own corner."""
    generator = torch.Generator().manual_seed(client)
    x = torch.randn(60, 2, generator=generator) + 0.4 * torch.tensor([client % 2 - 0.5, 0.0])
    return x, (x[:, 0] * x[:, 1] > 0).long()


def fit(model, client, steps=3):
    x, y = data(client)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def reply(message, model, client, **metrics):
    _, y = data(client)
    values = {"num-examples": len(y), "class-counts": class_counts(y, 2), "epochs": 3, **metrics}
    values = {key: value for key, value in values.items() if value is not None}
    records = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord(values)}
    return Message(RecordDict(records), reply_to=message)


def make_app(train=None, mods=(fedma_mod,), steps=3):
    """A ClientApp; `train(message, context, client)` replaces its train function."""
    app = ClientApp(mods=list(mods))

    @app.train()
    def train_function(message, context):
        client = context.node_config["partition-id"]
        torch.manual_seed(client)  # own initialisation: every client draws its own weights
        if train is not None:
            return train(message, context, client)
        model = load_model(Net(), message)
        fit(model, client, steps)
        return reply(message, model, client)

    @app.evaluate()
    def evaluate_function(message, context):
        client = context.node_config["partition-id"]
        x, y = data(client)
        model = load_model(Net(), message)
        accuracy = float((model(x).argmax(1) == y).float().mean())
        values = MetricRecord({"num-examples": len(y), "accuracy": accuracy})
        return Message(RecordDict({"numbers": values}), reply_to=message)

    return app
