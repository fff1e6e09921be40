"""Six small networks, each with data that it learns in a second."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn
from torch.nn import functional as fn

from fedma_flwr.structure import derive_spec
from fedma_flwr.tasks import get_task
from tests.structure.networks import ResNet


class DepthwiseSeparable(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, 2, padding=1)
        self.deep1, self.point1 = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 12, 1)
        self.deep2, self.point2 = nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.Conv2d(12, 16, 1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        x = fn.relu(self.stem(x))
        x = fn.relu(self.point1(self.deep1(x)))
        x = fn.relu(self.point2(self.deep2(x)))
        return self.fc(fn.adaptive_max_pool2d(x, 1).flatten(1))


class Recurrent(nn.Module):
    def __init__(self, kind, layers):
        super().__init__()
        self.embedding = nn.Embedding(6, 6)
        self.rnn = kind(6, 12, layers, batch_first=True)
        self.decoder = nn.Linear(12, 3)

    def forward(self, x):
        return self.decoder(self.rnn(self.embedding(x))[0][:, -1])


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(6, 8)
        self.position = nn.Parameter(0.1 * torch.randn(1, 10, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.decoder = nn.Linear(8, 3)

    def forward(self, x):
        return self.decoder(self.encoder(self.embedding(x) + self.position).mean(1))


class Conv1d(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(1, 8, 5), nn.Conv1d(8, 12, 5)
        self.fc1, self.fc2 = nn.Linear(12 * 5, 16), nn.Linear(16, 3)

    def forward(self, x):
        x = fn.max_pool1d(fn.relu(self.conv1(x)), 2)
        x = fn.max_pool1d(fn.relu(self.conv2(x)), 2)
        return self.fc2(fn.relu(self.fc1(x.flatten(1))))


def digits(count, generator):
    """Real handwritten digits, 14 x 14."""
    images, labels = _digits()
    chosen = torch.randperm(len(labels), generator=generator)[:count]
    return images[chosen], labels[chosen]


@cache
def _digits():
    data = get_task("mnist").load("embedded", "")
    images, labels = data.train.tensors
    return fn.avg_pool2d(images, 2), labels


def tokens(count, generator):
    """Ten tokens; the class is the one of 0, 1, 2 that comes most often."""
    x = torch.randint(6, (count * 3, 10), generator=generator)
    counts = torch.stack([(x == token).sum(1) for token in range(3)], 1)
    top = counts.topk(2, 1).values
    clear = (top[:, 0] >= top[:, 1] + 1).nonzero().flatten()[:count]
    return x[clear], counts[clear].argmax(1)


def waves(count, generator):
    """Noisy sine waves; the class is their frequency."""
    labels = torch.randint(3, (count,), generator=generator)
    phase = 6.3 * torch.rand(count, 1, generator=generator)
    time = torch.arange(32)[None]
    clean = torch.sin(phase + time * (0.3 + 0.3 * labels[:, None]))
    return (clean + 0.5 * torch.randn(count, 32, generator=generator))[:, None], labels


@dataclass(frozen=True)
class Case:
    """A network, its data, how it is trained, and what its accuracy must come to.

    Parameters
    ----------
    make : callable
        Makes the network.
    draw : callable
        Inputs and labels from a number of examples and a generator.
    accuracy : float
        What so many rounds must reach; guessing gives 0.1 for digits, 1/3 for the others.
    rounds : int (default: 1)
        Communication rounds.
    """

    make: Callable
    draw: Callable
    accuracy: float
    rounds: int = 1


CASES = {
    "resnet": Case(lambda: ResNet(1, 2, widths=(8, 8, 12)), digits, 0.35),
    "lstm": Case(lambda: Recurrent(nn.LSTM, 2), tokens, 0.65),
    "gru": Case(lambda: Recurrent(nn.GRU, 1), tokens, 0.65),
    "transformer": Case(Transformer, tokens, 0.65),
    "depthwise": Case(DepthwiseSeparable, digits, 0.32, rounds=2),
    "conv1d": Case(Conv1d, waves, 0.75),
}


@cache
def spec_of(name):
    """The derived and proven spec of a case; deriving one takes a second."""
    case = CASES[name]
    inputs, _ = case.draw(2, torch.Generator().manual_seed(0))
    return derive_spec(case.make(), (inputs,))
