"""A small problem for benchmarks of the strategy: digits of 14 x 14 pixels on ten clients.

The digits are those of `simulations.small_digits`, the network has two convolutions and two linear
layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from fedma_flwr import FedMA
from fedma_flwr.structure import PermutationSpec, derive_spec
from fedma_flwr.testing import InProcessGrid, Intercept
from simulations.small_digits import Mod, Training, accuracies, digits, make_app, split

CLIENTS, ROUNDS, BATCH_SIZE = 10, 3, 64
EPOCHS = {"local": 5, "retrain": 2, "head": 4}
LEARNING_RATES = {"local": 0.1, "retrain": 0.1, "head": 0.02}


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

    accuracies: list[float]
    strategy: FedMA


@cache
def spec() -> PermutationSpec:
    """The network's spec."""
    return derive_spec(Net(), (torch.zeros(2, 1, 14, 14),))


@cache
def shares(alpha: float, seed: int) -> list[TensorDataset]:
    """Each client's digits, Dirichlet(alpha) as in the paper's code."""
    images, labels = digits()[0].tensors
    parts = split(labels, CLIENTS, alpha, seed)
    return [TensorDataset(images[part], labels[part]) for part in parts]


def run(
    *,
    seed: int,
    alpha: float = 0.5,
    clients: int = CLIENTS,
    rounds: int = ROUNDS,
    mods: Sequence[Mod] = (),
    intercept: Intercept | None = None,
    mislabelled: int = 0,
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
    mislabelled : int (default: 0)
        The last so many clients call every class by the next one's number.
    **options
        Of `FedMA`.
    """
    torch.manual_seed(seed)
    layerwise = {"groups_per_stage": 1, "head": "trained"}  # the benchmarks are about matching
    settings = {"spec": spec(), "fraction_evaluate": 0.0, "seed": seed, **layerwise, **options}
    strategy = FedMA(**settings)
    training = Training(lambda client: Net(), EPOCHS, LEARNING_RATES, BATCH_SIZE, seed)
    own = list(shares(alpha, seed))
    for client in range(CLIENTS - mislabelled, CLIENTS):
        inputs, labels = own[client].tensors
        own[client] = TensorDataset(inputs, (labels + 1) % 10)
    app = make_app(own, training, mods)
    grid = InProcessGrid(app, clients, intercept=intercept)
    return Outcome(accuracies(strategy, grid, Net, rounds), strategy)
