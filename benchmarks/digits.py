"""A small problem for benchmarks of the strategy: digits of 14 x 14 pixels on ten clients.

The real handwritten digits of the MNIST task (4,000 to train, 1,000 to test), halved, a network
of two convolutions and two linear layers, the in-process grid: a communication round takes
seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from fedma_flwr import FedMA, Stage, class_counts, fedma_mod, load_model
from fedma_flwr.structure import PermutationSpec, derive_spec
from fedma_flwr.tasks import get_task, partition
from fedma_flwr.testing import InProcessGrid, Intercept

CLIENTS, ROUNDS, BATCH_SIZE = 10, 3, 64
EPOCHS = {"local": 5, "retrain": 2, "head": 4}
LEARNING_RATES = {"local": 0.1, "retrain": 0.1, "head": 0.02}
TASK = get_task("mnist")

Mod = Callable[[Message, Context, Callable[[Message, Context], Message]], Message]


class Net(nn.Module):
    """Two convolutions and two linear layers; 6,346 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 5, stride=2)
        self.conv2 = nn.Conv2d(8, 16, 3)
        self.fc1 = nn.Linear(16 * 9, 32)
        self.fc2 = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (batch, 10), of images, (batch, 1, 14, 14)."""
        x = functional.relu(self.conv1(x))  # (B, 8, 5, 5)
        x = functional.relu(self.conv2(x))  # (B, 16, 3, 3)
        logits: Tensor = self.fc2(functional.relu(self.fc1(x.flatten(1))))
        return logits


@dataclass(frozen=True)
class Outcome:
    """What a run has given.

    Parameters
    ----------
    accuracies : list of float
        Of the global model after each round, on the test digits.
    strategy : FedMA
        With its history.
    """

    accuracies: list[float] = field(default_factory=list)
    strategy: FedMA | None = None


@cache
def spec() -> PermutationSpec:
    """The network's spec."""
    return derive_spec(Net(), (torch.zeros(2, 1, 14, 14),))


@cache
def _halved() -> tuple[TensorDataset, TensorDataset]:
    data = TASK.load("embedded", "")
    train, test = (
        TensorDataset(functional.avg_pool2d(part.tensors[0], 2), part.tensors[1])
        for part in (data.train, data.test)
    )
    return train, test


@cache
def shares(alpha: float, seed: int) -> list[TensorDataset]:
    """Each client's digits, Dirichlet(alpha) as in the paper's code."""
    images, labels = _halved()[0].tensors
    parts = partition.split(
        labels.numpy(), "dirichlet", CLIENTS, alpha=alpha, self_balancing=True, seed=seed
    )
    return [TensorDataset(images[part], labels[part]) for part in parts]


def make_app(data: Sequence[TensorDataset], seed: int, mods: Sequence[Mod] = ()) -> ClientApp:
    """Clients that train with SGD on their shares; `mods` come before `fedma_mod`."""
    app = ClientApp(mods=[*mods, fedma_mod])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client, stage = int(context.node_config["partition-id"]), Stage.from_message(message)
        model = load_model(Net(), message)
        TASK.train(
            model,
            data[client],
            epochs=EPOCHS[stage.name],
            lr=LEARNING_RATES[stage.name],
            momentum=0.9,
            weight_decay=0.0,
            batch_size=BATCH_SIZE,
            seed=10_000 * seed + 100 * stage.round + 10 * stage.index + client,
        )
        labels = data[client].tensors[1]
        counts = class_counts(labels, 10)
        metrics = MetricRecord({"num-examples": len(labels), "class-counts": counts})
        records = {"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}
        return Message(RecordDict(records), reply_to=message)

    return app


def run(
    *,
    seed: int,
    alpha: float = 0.5,
    clients: int = CLIENTS,
    rounds: int = ROUNDS,
    mods: Sequence[Mod] = (),
    intercept: Intercept | None = None,
    **options: object,
) -> Outcome:
    """Train on the digits.

    Parameters
    ----------
    seed : int
        Of the partition, the initial weights, the shuffling and the matcher.
    alpha : float (default: 0.5)
        Of the Dirichlet distribution over `CLIENTS` clients.
    clients : int (default: 10)
        The first so many of them take part.
    rounds : int (default: 3)
        Communication rounds.
    mods : sequence of mods
        What changes the clients' messages and replies, outside `fedma_mod`.
    intercept : callable, optional
        See `InProcessGrid`.
    **options
        Of `FedMA`.
    """
    test, found = _halved()[1], []

    def evaluate(server_round: int, arrays: ArrayRecord) -> None:
        if server_round:
            found.append(TASK.evaluate(load_model(Net(), arrays), test)[1])

    torch.manual_seed(seed)
    strategy = FedMA(spec=spec(), fraction_evaluate=0.0, seed=seed, **options)
    app = make_app(shares(alpha, seed), seed, mods)
    grid = InProcessGrid(app, clients, intercept=intercept)
    initial = ArrayRecord(Net().state_dict())
    strategy.start(grid, initial, num_rounds=rounds, evaluate_fn=evaluate)
    return Outcome(found, strategy)
