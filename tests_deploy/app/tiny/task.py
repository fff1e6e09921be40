"""Six overlapping clouds of points, and a network with three hidden layers."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

CLASSES = 6
INFORMATIVE = 16  # inputs that differ between the classes; those beyond are 0
NOISE = 1.2
TRAIN_EXAMPLES, TEST_EXAMPLES, TEST_SEED = 240, 1200, 10_000
MISSING = 1  # classes that a client has few examples of
BATCH, LR = 20, 0.1

torch.set_num_threads(1)  # tiny tensors, several clients a machine, and sums in the same order


def make_net(inputs: int) -> nn.Sequential:
    """The network; the same first weights in every process."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(inputs, 128),
            nn.ReLU(),
            nn.Linear(128, 32),
            nn.ReLU(),
            nn.Linear(32, 24),
            nn.ReLU(),
            nn.Linear(24, CLASSES),
        )


def make_data(inputs: int, count: int, seed: int, missing: tuple[int, ...] = ()) -> TensorDataset:
    """`count` points; of the missing classes a tenth of the others' share."""
    centres = torch.randn(CLASSES, INFORMATIVE, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(seed)
    shares = torch.tensor([0.1 if label in missing else 1.0 for label in range(CLASSES)])
    labels = torch.multinomial(shares, count, replacement=True, generator=generator)
    noise = NOISE * torch.randn(count, INFORMATIVE, generator=generator)
    points = torch.zeros(count, inputs)
    points[:, :INFORMATIVE] = centres[labels] + noise
    return TensorDataset(points, labels)


def client_data(inputs: int, client: int) -> TensorDataset:
    """What a client trains on."""
    missing = tuple((client + offset) % CLASSES for offset in range(MISSING))
    return make_data(inputs, TRAIN_EXAMPLES, seed=client, missing=missing)


def train(net: nn.Module, data: TensorDataset, epochs: int, seed: int) -> None:
    """SGD over the parameters that are not frozen.

    Written out: torch's optimizers import a compiler first, which takes longer than all the rest,
    and in a deployment every message has a process of its own.
    """
    points, labels = data.tensors
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for batch in torch.randperm(len(points), generator=generator).split(BATCH):
            loss = cross_entropy(net(points[batch]), labels[batch])
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.add_(gradient, alpha=-LR)


@torch.no_grad()
def evaluate(net: nn.Module, inputs: int) -> tuple[float, float]:
    """Loss and accuracy on points that no client has."""
    points, labels = make_data(inputs, TEST_EXAMPLES, TEST_SEED).tensors
    outputs = net(points)
    right = (outputs.argmax(1) == labels).float().mean()
    return float(cross_entropy(outputs, labels)), float(right)
