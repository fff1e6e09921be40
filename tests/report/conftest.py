"""A run that takes a second, its records, and its report."""

import pytest
import torch
from flwr.app import ArrayRecord, MetricRecord
from torch import nn

from fedma_flwr import FedAvg, FedMA, load_model
from fedma_flwr.testing import InProcessGrid
from tests.toy import make_app, reply

HOSTILE = "<script>alert('you')</script><img src=x onerror=alert(1)> $x$ ]]> &lt;"


class Pictures(nn.Module):
    """A convolution whose filters can be shown, a hidden layer, and a head of three classes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.hidden = nn.Linear(4 * 16, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = torch.relu(self.conv(x)).flatten(1)
        return self.head(torch.relu(self.hidden(x)))


def examples(client):
    generator = torch.Generator().manual_seed(client)
    y = torch.arange(30) % 3
    x = torch.randn(30, 1, 6, 6, generator=generator) * 0.3
    x[torch.arange(30), 0, y] += 1.0  # a bright line, a class by its place
    return x, y


def train(message, _context, client):
    model = load_model(Pictures(), message)
    x, y = examples(client)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    return reply(message, model, client, **{"class-counts": [10, 10, 10], "num-examples": 30})


def evaluate(_round, arrays):
    model = load_model(Pictures(), arrays)
    x, y = examples(99)
    loss = nn.functional.cross_entropy(model(x), y).detach()
    accuracy = (model(x).argmax(1) == y).float().mean()
    return MetricRecord({"accuracy": float(accuracy), "loss": float(loss)})


def run(folder, *, fedavg=False, hostile=False, rounds=2, clients=4, client=train, **options):
    """Run FedMA, or FedAvg, with records; the last client may be a hostile one from round 2 on."""

    def intercept(message, context):
        config = message.content.get("config", {})
        if context.node_config["partition-id"] == clients - 1 and config.get("server-round") == 2:
            raise RuntimeError(HOSTILE)

    torch.manual_seed(0)
    model = Pictures()
    grid = InProcessGrid(make_app(client), clients, intercept=intercept if hostile else None)
    options = {"fraction_evaluate": 0.0, "output_dir": folder, **options}
    if not fedavg:
        given = {"model": model, "example_inputs": (examples(0)[0][:2],)}
        options = {"initialisation": "own", **given, **options}
    strategy = (FedAvg if fedavg else FedMA)(**options)
    arrays = ArrayRecord(model.state_dict())
    strategy.start(grid, arrays, num_rounds=rounds, evaluate_fn=evaluate)
    return strategy


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Of two runs: one of FedMA with a client that fails, one of FedAvg."""
    path = tmp_path_factory.mktemp("runs")
    run(path / "fedma", hostile=True)
    run(path / "fedavg", fedavg=True)
    return path
