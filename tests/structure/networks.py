"""Small networks with the structures that specs are derived for."""

import functools
import itertools

import torch
from torch import nn
from torch.nn import functional as fn

from fedma_flwr.structure import derive_spec


class LeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 20, 5), nn.Conv2d(20, 50, 5)
        self.fc1, self.fc2 = nn.Linear(800, 500), nn.Linear(500, 10)

    def forward(self, x):
        x = fn.max_pool2d(fn.relu(self.conv1(x)), 2)
        x = fn.max_pool2d(fn.relu(self.conv2(x)), 2)
        return self.fc2(fn.relu(self.fc1(x.flatten(1))))


class Quickstart(nn.Module):
    """The network of Flower's quickstart, with its hard-coded view."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x):
        x = self.pool(fn.relu(self.conv1(x)))
        x = self.pool(fn.relu(self.conv2(x)))
        x = x.view(-1, 16 * 5 * 5)
        return self.fc3(fn.relu(self.fc2(fn.relu(self.fc1(x)))))


class VGG9(nn.Module):
    def __init__(self):
        super().__init__()
        channels, layers = [3, 32, 64, 128, 128, 256, 256], []
        for index in range(6):
            layers += [nn.Conv2d(channels[index], channels[index + 1], 3, padding=1), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if index % 2 else []
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Dropout(0.1), nn.Linear(4096, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(),
            nn.Dropout(0.1), nn.Linear(512, 10),
        )  # fmt: skip

    def forward(self, x):
        x = self.features(x)
        return self.classifier(x.view(x.size(0), -1))


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.short = nn.Identity()
        if inputs != outputs or stride != 1:
            self.short = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        y = fn.relu(self.bn1(self.conv1(x)))
        return fn.relu(self.bn2(self.conv2(y)) + self.short(x))


class ResNet(nn.Module):
    def __init__(self, inputs=3, stride=1, widths=(8, 8, 16, 16)):
        super().__init__()
        self.conv = nn.Conv2d(inputs, widths[0], 3, stride, 1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        blocks = (Block(a, b, 1 if a == b else 2) for a, b in itertools.pairwise(widths))
        self.layers = nn.Sequential(*blocks)
        self.fc = nn.Linear(widths[-1], 10)

    def forward(self, x):
        x = self.layers(fn.relu(self.bn(self.conv(x))))
        return self.fc(fn.adaptive_avg_pool2d(x, 1).flatten(1))


class LSTM(nn.Module):
    def __init__(self, layers=1):
        super().__init__()
        self.encoder = nn.Embedding(80, 8)
        self.lstm = nn.LSTM(8, 32, layers, batch_first=True)
        self.decoder = nn.Linear(32, 80)

    def forward(self, x):
        y, _ = self.lstm(self.encoder(x))
        return self.decoder(y[:, -1])


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(50, 16)
        self.pos = nn.Parameter(torch.randn(1, 6, 16))
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        self.enc = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 50)

    def forward(self, x):
        return self.head(self.enc(self.emb(x) + self.pos))


class FusedAttention(nn.Module):
    """Hand-written attention with one projection for q, k and v."""

    def __init__(self, width=16, heads=4):
        super().__init__()
        self.heads = heads
        self.inp, self.qkv = nn.Linear(5, width), nn.Linear(width, 3 * width)
        self.proj, self.head = nn.Linear(width, width), nn.Linear(width, 3)

    def by_head(self, x):
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def forward(self, x):
        x = self.inp(x)
        q, k, v = (self.by_head(part) for part in self.qkv(x).chunk(3, 2))
        weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
        return self.head(x + self.proj((weights @ v).transpose(1, 2).flatten(2)))


class Depthwise(nn.Module):
    """Depthwise, concatenated, grouped and transposed convolutions."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.dw = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.b = nn.Conv2d(3, 4, 3, padding=1)
        self.g = nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.t, self.o = nn.ConvTranspose2d(12, 6, 2, 2), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        x = torch.cat([fn.relu(self.dw(self.a(x))), fn.relu(self.b(x))], 1)
        return self.o(fn.relu(self.t(fn.relu(self.g(x)))))


class ChannelsLast(nn.Module):
    """Flatten with the channels last."""

    def __init__(self):
        super().__init__()
        self.c, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(144, 5)

    def forward(self, x):
        return self.fc(fn.relu(self.c(x)).permute(0, 2, 3, 1).flatten(1))


def tokens(high, *shape):
    return torch.arange(torch.Size(shape).numel()).reshape(shape) % high


# name: network, example input, groups found by the prototype
NINE = {
    "lenet": (LeNet, torch.zeros(2, 1, 28, 28), 3),
    "vgg9": (VGG9, torch.zeros(2, 3, 32, 32), 8),
    "resnet": (ResNet, torch.zeros(2, 3, 8, 8), 5),
    "lstm": (LSTM, tokens(80, 2, 5), 2),
    "lstm2": (lambda: LSTM(2), tokens(80, 2, 5), 3),
    "transformer": (Transformer, tokens(50, 2, 6), 7),
    "attention": (FusedAttention, torch.zeros(2, 6, 5), 4),
    "depthwise": (Depthwise, torch.zeros(2, 3, 8, 8), 4),
    "channels_last": (ChannelsLast, torch.zeros(2, 1, 8, 8), 1),
}


@functools.cache
def derived(name):
    """One of the nine networks, its example input and its spec: derived once for all tests."""
    build, x, _ = NINE[name]
    model = build()
    return model, x, derive_spec(model, (x,))


class Net(nn.Module):
    """A network from named modules, parameters and buffers, and a function of itself and inputs."""

    def __init__(self, run, **parts):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            if isinstance(part, torch.Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *inputs):
        return self.run(self, *inputs)


def mlp(hidden, inputs=6, width=8, outputs=3, **parts):
    """Two linear layers with something in between: ``hidden(net, x)``."""
    return Net(
        lambda net, x: net.b(hidden(net, net.a(x))),
        a=nn.Linear(inputs, width),
        b=nn.Linear(parts.pop("into", width), outputs),
        **parts,
    )


def convnet(hidden, channels=8, outputs=3, **parts):
    """Two 1x1 convolutions with something in between."""
    return Net(
        lambda net, x: net.b(hidden(net, net.a(x))),
        a=nn.Conv2d(2, channels, 1),
        b=nn.Conv2d(parts.pop("into", channels), outputs, 1),
        **parts,
    )
