"""What estimating batch norms' running statistics anew is worth, on an in-process grid.

``python -m simulations.batch_norm`` trains a small convolutional network with batch norm on 2,000
real digits, 6 clients, Dirichlet(0.2), and prints the test accuracy after each round with
``reestimate_statistics`` on and off, for both initialisations. Minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from fedma_flwr import FedMA
from fedma_flwr.structure import PermutationSpec, derive_spec
from fedma_flwr.testing import InProcessGrid
from simulations.small_digits import Training, accuracies, digits, make_app, split

CLIENTS, TRAIN_EXAMPLES, ALPHA, ROUNDS = 6, 2000, 0.2, 2
EPOCHS = {"local": 5, "retrain": 2, "head": 4}
LEARNING_RATES = {"local": 0.05, "retrain": 0.05, "head": 0.01}
BATCH_SIZE = 32


class Net(nn.Module):
    """Two convolutions and two linear layers, with three batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.norm2 = nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.fc1, self.norm3 = nn.Linear(32 * 9, 64, bias=False), nn.BatchNorm1d(64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (batch, 10), of images, (batch, 1, 14, 14)."""
        x = functional.max_pool2d(functional.relu(self.norm1(self.conv1(x))), 2)  # (B, 16, 7, 7)
        x = functional.max_pool2d(functional.relu(self.norm2(self.conv2(x))), 2)  # (B, 32, 3, 3)
        logits: Tensor = self.fc2(functional.relu(self.norm3(self.fc1(x.flatten(1)))))
        return logits


def shares(seed: int) -> list[TensorDataset]:
    """Each client's digits."""
    chosen = torch.randperm(4000, generator=torch.Generator().manual_seed(0))[:TRAIN_EXAMPLES]
    images, labels = digits()[0][chosen]
    parts = split(labels, CLIENTS, ALPHA, seed)
    # A last batch of one example would have no variance: leave it out.
    parts = [part[: len(part) - (len(part) % BATCH_SIZE == 1)] for part in parts]
    return [TensorDataset(images[part], labels[part]) for part in parts]


def run(
    spec: PermutationSpec,
    initialisation: str,
    *,
    reestimate: bool,
    bundled: bool,
    seed: int,
    head: str = "trained",
) -> list[float]:
    """Test accuracy of the global model after each round."""

    def untrained(client: int) -> Net:
        torch.manual_seed(1000 * seed + client if initialisation == "own" else seed)
        return Net()

    torch.manual_seed(seed)
    strategy = FedMA(
        spec=spec,
        initialisation=initialisation,
        reestimate_statistics=reestimate,
        groups_per_stage="all" if bundled else 1,
        head=head,
        fraction_evaluate=0.0,
        seed=seed,
    )
    training = Training(untrained, EPOCHS, LEARNING_RATES, BATCH_SIZE, seed)
    grid = InProcessGrid(make_app(shares(seed), training), CLIENTS)
    return accuracies(strategy, grid, Net, ROUNDS)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each setting (default: 3)")
    parser.add_argument("--json", type=Path, help="write all accuracies to this file")
    parser.add_argument("--bundled", action="store_true", help="all groups in one stage")
    parser.add_argument("--head", choices=["trained", "solved"], default="trained")
    parser.add_argument("--start", nargs="+", default=["own", "common"], help="initialisations")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    spec = derive_spec(Net(), (torch.zeros(2, 1, 14, 14),))
    rows = []
    for initialisation in options.start:
        for reestimate in (True, False):
            setting = {"reestimate": reestimate, "bundled": options.bundled, "head": options.head}
            runs = [
                run(spec, initialisation, **setting, seed=seed) for seed in range(options.seeds)
            ]
            rows.append({"start": initialisation, **setting, "accuracies": runs})
            means = ", ".join(f"{mean:.3f}" for mean in np.mean(runs, axis=0))
            print(
                f"{initialisation:6}  reestimate_statistics={reestimate!s:5}  {means}", flush=True
            )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")


if __name__ == "__main__":
    logging.getLogger("flwr").setLevel(logging.ERROR)
    main()
