"""Models that `torch.export` cannot follow: code that looks at values, outputs of any class."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as fn

from fedma_flwr.structure import derive_spec
from tests.structure.networks import Net, mlp

VECTOR = torch.zeros(4, 6)
SERIES = torch.zeros(3, 5, 6)


@dataclass
class Result:
    logits: torch.Tensor
    extra: object = None


class Cache:
    """An object with tensors somewhere inside."""

    def __init__(self, states):
        self.layers = [SimpleNamespace(states=states)]


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def until_small(net, x):
    while x.abs().max() > 1:
        x = x / 2
    return x


def routed(net, x):
    h = net.a(x)
    best = net.gate(x).argmax(1)
    out = torch.zeros(len(x), 3)
    for number, expert in enumerate(net.experts):
        rows = (best == number).nonzero()[:, 0]
        if len(rows):
            out = out.index_add(0, rows, expert(h[rows]).to(out.dtype))
    return out


def early_exit(net, x):
    y = net.early(net.a(x).relu())
    return y if y.softmax(-1).max() > 0.9 else net.b(y.relu())


def packed(net, x):
    lengths = torch.tensor([5, 3, 2])
    sequence = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
    padded, _ = nn.utils.rnn.pad_packed_sequence(net.rnn(sequence)[0], batch_first=True)
    return net.b(padded.sum(1))


def force(net, x):
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        return torch.autograd.grad(net.b(net.a(x).sigmoid()).sum(), x, create_graph=True)[0]


def in_the_past(net, x):
    size = x.shape[1]
    return net.b(net.t(x, mask=nn.Transformer.generate_square_subsequent_mask(size)))


def encoder():
    layer = nn.TransformerEncoderLayer(6, 2, 10, batch_first=True)
    return Net(in_the_past, t=nn.TransformerEncoder(layer, 1), b=nn.Linear(6, 3))


def scripted():
    part = torch.jit.script(nn.Sequential(nn.Linear(6, 8), nn.Tanh()))
    return nn.Sequential(part, nn.Linear(8, 3))


def old_weight_norm():
    layer = nn.utils.weight_norm(nn.Linear(6, 8))
    return nn.Sequential(layer, nn.ReLU(), nn.Linear(8, 3))


def result(net, x):
    h = net.a(x)
    return Result(net.b(h.relu()), [Cache(net.c(h))])


EXPERTS = {"gate": nn.Linear(6, 3), "experts": nn.ModuleList(nn.Linear(8, 3) for _ in range(3))}

# name: network, inputs, {tensor: its axes}
CASES = {
    "a_class_of_its_own": (
        Net(result, a=nn.Linear(6, 8), b=nn.Linear(8, 3), c=nn.Linear(8, 5)),
        VECTOR, {"b.weight": "3, a", "c.weight": "5, a"},
    ),
    "a_sign": (mlp(lambda n, x: x if x.sum() > 0 else -x), VECTOR, {"b.weight": "3, a"}),
    "a_number": (mlp(lambda n, x: x / float(x.sum())), VECTOR, {"b.weight": "3, a"}),
    "a_loop": (mlp(until_small), VECTOR, {"b.weight": "3, a"}),
    "routing": (
        Net(routed, a=nn.Linear(6, 8), **EXPERTS), VECTOR, {"experts.1.weight": "3, a"},
    ),
    "early_exit": (
        Net(early_exit, a=nn.Linear(6, 8), early=nn.Linear(8, 3), b=nn.Linear(3, 3)),
        VECTOR, {"early.weight": "3, a", "b.weight": "3, 3"},
    ),
    "packed": (
        Net(packed, rnn=nn.GRU(6, 8, 2, batch_first=True, bidirectional=True), b=nn.Linear(16, 3)),
        SERIES, {"b.weight": "3, rnn.l1 + rnn.l1_reverse"},
    ),
    "gradients_inside": (
        Net(force, a=nn.Linear(6, 8), b=nn.Linear(8, 1)), VECTOR, {"a.weight": "a, 6"},
    ),
    "a_function_of_autograd": (
        mlp(lambda n, x: Swish.apply(x)), VECTOR, {"b.weight": "3, a"},
    ),
    "a_mask": (encoder(), SERIES, {"t.layers.0.linear2.weight": "6, t.layers.0.linear1"}),
    "scripted": (scripted(), VECTOR, {"1.weight": "3, 0.0"}),
    "traced": (
        nn.Sequential(
            torch.jit.trace(nn.Sequential(nn.Linear(6, 8), nn.ELU()), VECTOR), nn.Linear(8, 3)
        ),
        VECTOR, {"1.weight": "3, 0.0"},
    ),
    "old_weight_norm": (old_weight_norm(), VECTOR, {"2.weight": "3, 0."}),
    "rows_without_a_mark": (
        mlp(lambda n, x: torch.zeros_like(x).index_add(0, *kept_rows(x))),
        VECTOR, {"b.weight": "3, a"},
    ),
}  # fmt: skip


def kept_rows(x):
    numbers = torch.arange(len(x))
    numbers = numbers[numbers != 2]
    return numbers, x[numbers]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_groups_of(name):
    model, inputs, wanted = CASES[name]
    spec = derive_spec(model, (inputs,))
    assert {tensor: spec.describe(tensor) for tensor in wanted} == wanted


class Cached(nn.Module):
    """Keeps what it computes from a parameter in evaluation mode, and never drops it."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.scale = nn.Linear(6, 8), nn.Linear(8, 3), nn.Parameter(torch.randn(8))
        self.kept = {}

    def forward(self, x):
        if self.training:
            self.kept.clear()
        if "gate" not in self.kept:
            self.kept["gate"] = self.scale.sigmoid()
        return self.b(self.a(x) * self.kept["gate"])

    def train(self, mode=True):
        self.kept.clear()
        return super().train(mode)


def test_what_a_run_caches_is_dropped():
    model = Cached().eval()
    model(VECTOR)
    assert derive_spec(model, (VECTOR,)).describe("b.weight") == "3, scale"
    assert list(model.kept) == ["gate"]


class Settings(dict):
    """Read only, as a library's configuration."""

    def update(self, *_):
        raise TypeError("read only")

    def clear(self):
        raise TypeError("read only")


def test_settings_that_refuse_changes_do_not_hinder_growth():
    model = mlp(fn_relu)
    model.config = Settings(width=8)
    assert derive_spec(model, (VECTOR,)).groups["a"].growable


def fn_relu(net, x):
    return fn.relu(x)


class Versioned(nn.Linear):
    def get_extra_state(self):
        return {"version": 1}

    def set_extra_state(self, state):
        self.version = state["version"]


def test_extra_state_is_no_tensor_and_left_alone():
    spec = derive_spec(nn.Sequential(Versioned(6, 8), nn.Linear(8, 3)), (VECTOR,))
    assert list(spec.axes) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert spec.groups["0."].growable
