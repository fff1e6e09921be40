"""Structures that tempt to a wrong spec: what can be permuted in them, and what cannot."""

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as fn
from torch.nn.utils import parametrizations

from fedma_flwr.structure import derive_spec
from tests.structure.networks import Net, convnet, mlp

VECTOR = torch.zeros(4, 6)
IMAGE = torch.zeros(2, 2, 6, 6)
SERIES = torch.zeros(3, 5, 6)


def attention(scores=lambda net, s: s, rotate=lambda net, q: q, **parts):
    """Two heads of width 4, with something done to queries and keys, or to the scores."""

    def by_head(x):
        return x.unflatten(-1, (2, 4)).transpose(1, 2)

    def run(net, x):
        q, k, v = (by_head(layer(x)) for layer in (net.q, net.k, net.v))
        q, k = rotate(net, q), rotate(net, k)
        weights = scores(net, q @ k.transpose(-1, -2)).softmax(-1)
        return net.b((weights @ v).transpose(1, 2).flatten(2))

    layers = {name: nn.Linear(6, 8) for name in "qkv"}
    return Net(run, **layers, b=nn.Linear(8, 3), **parts)


def distances():
    return (torch.arange(5)[:, None] - torch.arange(5)).abs()


def alibi(net, s):
    return s - torch.tensor([0.5, 0.25])[:, None, None] * distances()


def alibi_from_a_buffer(net, s):
    return s - net.slopes[:, None, None] * distances()


def angles():
    return torch.arange(5)[:, None] * torch.tensor([1.0, 0.1])


def rotate_halves(net, q):
    a, b = q.chunk(2, -1)
    cos, sin = angles().cos(), angles().sin()
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def rotate_neighbours(net, q):
    a, b = q[..., 0::2], q[..., 1::2]
    cos, sin = angles().cos(), angles().sin()
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)


def rotate_by_buffers(net, q):
    a, b = q.chunk(2, -1)
    return q * net.cos + torch.cat([-b, a], -1) * net.sin


def relative_bias(net, s):
    return s + net.table[distances()].permute(2, 0, 1)


def talking_heads(net, s):
    return torch.einsum("bhij,hg->bgij", s, net.mix)


def two_weights(net, x):
    one, other = torch.cat([net.w, net.u]), torch.cat([net.u, net.w])
    return net.b(torch.cat([fn.linear(x, one), fn.linear(x, other)], 1).relu())


def two_weights_added(net, x):
    one, other = torch.cat([net.w, net.u]), torch.cat([net.u, net.w])
    return net.b((fn.linear(x, one) + fn.linear(x, other)).relu())


def slices_swapped(net, x):
    return net.b(torch.cat([fn.linear(x, net.w[4:]), fn.linear(x, net.w[:4])], 1))


def transposed_by_functional_call(net, x):
    weights = {"weight": net.c.weight.T, "bias": net.c.bias}
    return functional_call(net.c, weights, (net.c(x).relu(),))


def running_average(net, x):
    if net.training:
        net.mean.copy_(0.9 * net.mean + 0.1 * x.mean(0))
    return x - net.mean


def pair():
    return {
        "w": nn.Parameter(torch.randn(3, 6)),
        "u": nn.Parameter(torch.randn(5, 6)),
    }


def both_ways():
    return nn.GRU(6, 8, batch_first=True, bidirectional=True)


# name: network, input, {tensor: its axes}
CASES = {
    "alibi": (attention(alibi), SERIES, {"q.weight": "2 x q, 6", "b.weight": "3, 2 x v"}),
    "alibi_from_a_buffer": (
        attention(alibi_from_a_buffer, slopes=torch.tensor([0.5, 0.25])),
        SERIES, {"slopes": "2", "q.weight": "2 x q, 6", "b.weight": "3, 2 x v"},
    ),
    "rotary_halves": (
        attention(rotate=rotate_halves), SERIES, {"k.weight": "q x 4, 6", "b.weight": "3, q x v"},
    ),
    "rotary_neighbours": (
        attention(rotate=rotate_neighbours),
        SERIES, {"k.weight": "q x 4, 6", "b.weight": "3, q x v"},
    ),
    "rotary_buffers": (
        attention(rotate=rotate_by_buffers, cos=torch.rand(5, 4), sin=torch.rand(5, 4)),
        SERIES, {"cos": "5, 4", "k.weight": "8, 6", "b.weight": "3, 2 x v"},
    ),
    "relative_bias": (
        attention(relative_bias, table=nn.Parameter(torch.randn(5, 2))),
        SERIES, {"table": "5, q", "q.weight": "q x q.units2, 6", "b.weight": "3, q x v"},
    ),
    "talking_heads": (
        attention(talking_heads, mix=nn.Parameter(torch.randn(2, 2))),
        SERIES, {"mix": "q, v", "b.weight": "3, v x v.units2"},
    ),
    "heads_moved": (
        attention(lambda net, s: s.flip(1)), SERIES, {"q.weight": "2 x q, 6"},
    ),
    "heads_in_order": (
        attention(lambda net, s: s.cumsum(1)), SERIES, {"q.weight": "2 x q, 6"},
    ),
    "weights_joined": (
        Net(two_weights, b=nn.Linear(16, 3), **pair()),
        VECTOR, {"w": "w, 6", "u": "u, 6", "b.weight": "3, w + u + u + w"},
    ),
    "weights_joined_across": (
        Net(two_weights_added, b=nn.Linear(8, 3), **pair()),
        VECTOR, {"w": "3, 6", "u": "5, 6", "b.weight": "3, 8"},
    ),
    "weights_cut": (
        Net(slices_swapped, w=nn.Parameter(torch.randn(8, 6)), b=nn.Linear(8, 3)),
        VECTOR, {"w": "w + w.units2, 6", "b.weight": "3, w.units2 + w"},
    ),
    "weights_transposed": (
        mlp(transposed_by_functional_call, c=nn.Linear(8, 8)),
        VECTOR, {"c.weight": "a, a", "b.weight": "3, a"},
    ),
    "autoencoder": (
        Net(lambda n, x: fn.linear(fn.linear(x, n.w).relu(), n.w.T), w=pair()["u"]),
        VECTOR, {"w": "w, 6"},
    ),
    "symmetric_weight": (
        mlp(lambda n, x: x @ (n.w + n.w.T), w=nn.Parameter(torch.randn(8, 8))),
        VECTOR, {"w": "a, a", "b.weight": "3, a"},
    ),
    "spectral_norm": (
        mlp(lambda n, x: n.c(x), c=parametrizations.spectral_norm(nn.Linear(8, 5)), into=5),
        VECTOR,
        {
            "c.parametrizations.weight.0._v": "a",
            "c.parametrizations.weight.original": "c.parametrizations.weight.0._u, a",
        },
    ),
    "running_average": (
        mlp(running_average, mean=torch.rand(8)), VECTOR, {"mean": "a", "b.weight": "3, a"},
    ),
    "norm_across_streams": (
        convnet(
            lambda n, x: n.norm(torch.cat([x, n.c(x)], 1)),
            c=nn.Conv2d(8, 4, 1), norm=nn.GroupNorm(3, 12), into=12,
        ),
        IMAGE,
        {"a.weight": "a x a.units2, 2, 1, 1", "b.weight": "3, a x a.units2 + a.units2, 1, 1"},
    ),
    "norm_across_a_seam": (
        convnet(
            lambda n, x: n.norm(torch.cat([x, n.c(x)], 1)),
            c=nn.Conv2d(8, 4, 1), norm=nn.GroupNorm(2, 12), into=12,
        ),
        IMAGE, {"a.weight": "a + a.units2 + a, 2, 1, 1", "c.bias": "a.units2"},
    ),
    "sums_and_differences": (
        mlp(lambda n, x: torch.cat([x[:, ::2] + x[:, 1::2], x[:, ::2] - x[:, 1::2]], 1)),
        VECTOR, {"a.weight": "a x 2, 6", "b.weight": "3, a + a"},
    ),
    "directions_added": (
        Net(lambda n, x: n.b(sum(n.rnn(x)[0].chunk(2, -1))), rnn=both_ways(), b=nn.Linear(8, 3)),
        SERIES, {"rnn.weight_hh_l0_reverse": "rnn + rnn + rnn, rnn", "b.weight": "3, rnn"},
    ),
    "directions_interleaved": (
        Net(
            lambda n, x: n.b(n.rnn(x)[0].unflatten(-1, (8, 2)).sum(-1)),
            rnn=both_ways(), b=nn.Linear(8, 3),
        ),
        SERIES, {"b.weight": "3, rnn + rnn.l0_reverse"},
    ),
    "all_hidden_states": (
        Net(
            lambda n, x: n.b(n.rnn(x)[1].transpose(0, 1).flatten(1)),
            rnn=both_ways(), b=nn.Linear(16, 3),
        ),
        SERIES, {"rnn.weight_hh_l0": "rnn + rnn + rnn, rnn", "b.weight": "3, 2 x rnn"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_groups_of(name):
    model, x, axes = CASES[name]
    spec = derive_spec(model, (x,))
    assert {tensor: spec.describe(tensor) for tensor in axes} == axes
