"""Regression: FedMA's default against Flower's FedAvg, by mean squared error on new examples.

python -m benchmarks.regression
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from torch import Tensor, nn
from torch.nn import functional

from fedma_flwr import FedMA, fedma_mod, load_model
from fedma_flwr.testing import InProcessGrid

CLIENTS, INPUTS, ROUNDS, EPOCHS = 6, 8, 6, 2
NEW = 200  # examples of each client that nobody trains on
Data = tuple[Tensor, Tensor]


class Net(nn.Module):
    """Two hidden layers and a linear head."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        hidden = (nn.Linear(INPUTS, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU())
        self.features, self.head = nn.Sequential(*hidden), nn.Linear(24, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Values for inputs."""
        values: Tensor = self.head(self.features(x))
        return values


def truth(x: Tensor, outputs: int) -> Tensor:
    """The values to be learned, before noise."""
    generator = torch.Generator().manual_seed(99)
    first = torch.randn(INPUTS, 6, generator=generator)
    second = torch.randn(6, outputs, generator=generator)
    return torch.tanh(x @ first) @ second + 0.5 * torch.sin(2 * x[:, :outputs])


def data(client: int, outputs: int) -> tuple[Data, Data]:
    """A client's examples, and new ones without noise; its inputs lie elsewhere than others'."""
    generator = torch.Generator().manual_seed(client + 1)
    x = torch.randn(40 + 40 * client, INPUTS, generator=generator)
    place = torch.randn(INPUTS, generator=generator)
    x = x + place
    noise = 0.1 * torch.randn(len(x), outputs, generator=generator)
    new = torch.randn(NEW, INPUTS, generator=torch.Generator().manual_seed(500 + client)) + place
    return (x, 3 + 2 * (truth(x, outputs) + noise)), (new, 3 + 2 * truth(new, outputs))


def make_app(outputs: int, rate: float, mods: list[Any]) -> ClientApp:
    """An ordinary ClientApp."""
    app = ClientApp(mods=mods)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        model, ((x, y), _) = load_model(Net(outputs), message), data(client, outputs)
        optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
        torch.manual_seed(client + 1000 * message.content["config"]["server-round"])
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(x)).split(16):
                optimizer.zero_grad()
                functional.mse_loss(model(x[rows]), y[rows]).backward()
                optimizer.step()
        metrics = MetricRecord({"num-examples": len(x)})
        content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
        return Message(content, reply_to=message)

    return app


def run(fedma: bool, outputs: int, rate: float, seed: int) -> list[float]:
    """The error after each round."""
    torch.manual_seed(seed)
    net, errors = Net(outputs), []
    new = [data(client, outputs)[1] for client in range(CLIENTS)]
    x, y = (torch.cat(parts) for parts in zip(*new, strict=True))

    def evaluate(_: int, arrays: ArrayRecord) -> MetricRecord:
        with torch.no_grad():
            errors.append(float(functional.mse_loss(load_model(Net(outputs), arrays)(x), y)))
        return MetricRecord({"loss": errors[-1]})

    strategy = FedAvg(fraction_evaluate=0.0)
    if fedma:
        inputs = torch.zeros(2, INPUTS)
        strategy = FedMA(model=net, example_inputs=inputs, fraction_evaluate=0.0)
    grid = InProcessGrid(make_app(outputs, rate, [fedma_mod] * fedma), CLIENTS)
    arrays = ArrayRecord(net.state_dict())
    strategy.start(grid, arrays, num_rounds=ROUNDS, evaluate_fn=evaluate)
    return errors[1:]


def main() -> None:
    """Print a table, means of three seeds."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    for outputs, rate in ((1, 0.005), (2, 0.005), (2, 0.02)):
        for name, fedma in (("FedAvg", False), ("FedMA", True)):
            runs = torch.tensor([run(fedma, outputs, rate, seed) for seed in range(3)])
            means = " ".join(f"{value:6.2f}" for value in runs.mean(0))
            print(f"{outputs} outputs, rate {rate}, {name:6} {means}")


if __name__ == "__main__":
    main()
