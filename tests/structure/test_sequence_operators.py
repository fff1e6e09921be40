"""Recurrent layers and attention: their groups, described at a telling tensor, and proven."""

import pytest
import torch
from torch import nn
from torch.nn import functional as fn

from fedma_flwr.structure import derive_spec
from tests.structure.networks import Net

SERIES = torch.zeros(3, 5, 6)


def recurrent(kind, layers=1, both=False, width=8, out=None, **options):
    return Net(
        lambda net, x: net.b(net.rnn(x)[0][:, -1]),
        rnn=kind(6, width, layers, batch_first=True, bidirectional=both, **options),
        b=nn.Linear((out or width) * (1 + both), 3),
    )


def last_hidden(net, x):
    _, (h, _) = net.rnn(x)
    return net.b(h[-1])


def unrolled(net, x):
    h = x.new_zeros(x.shape[0], 8)
    c = torch.zeros_like(h)
    for step in x.unbind(1):
        h, c = net.cell(step, (h, c))
    return net.b(h)


def unrolled_gru(net, x):
    h = torch.zeros(x.shape[0], 8, dtype=x.dtype)
    for step in x.unbind(1):
        h = net.cell(step, h)
    return net.b(h)


def separate_attention(net, x):
    q, k, v = (layer(x).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (net.q, net.k, net.v))
    y = fn.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return net.b(y)


linears = {name: nn.Linear(6, 8) for name in "qkv"}
# name: network, input, {tensor: its axes}
CASES = {
    "rnn": (recurrent(nn.RNN), SERIES, {"rnn.weight_hh_l0": "rnn, rnn", "b.weight": "3, rnn"}),
    "gru": (recurrent(nn.GRU), SERIES, {"rnn.weight_ih_l0": "rnn + rnn + rnn, 6"}),
    "lstm_layers": (
        recurrent(nn.LSTM, 2), SERIES,
        {"rnn.weight_ih_l1": "rnn.l1 + rnn.l1 + rnn.l1 + rnn.l1, rnn", "b.weight": "3, rnn.l1"},
    ),
    "lstm_both_ways": (
        recurrent(nn.LSTM, both=True), SERIES, {"b.weight": "3, rnn + rnn.l0_reverse"},
    ),
    "lstm_projected": (
        recurrent(nn.LSTM, proj_size=4, out=4), SERIES,
        {"rnn.weight_hr_l0": "rnn.units2, rnn", "b.weight": "3, rnn.units2"},
    ),
    "gru_both_ways_deep": (
        recurrent(nn.GRU, 2, both=True), SERIES,
        {
            "rnn.weight_ih_l1": "rnn.l1 + rnn.l1 + rnn.l1, rnn + rnn.l0_reverse",
            "b.weight": "3, rnn.l1 + rnn.l1_reverse",
        },
    ),
    "last_hidden_state": (
        Net(last_hidden, rnn=nn.LSTM(6, 8, 2, batch_first=True), b=nn.Linear(8, 3)),
        SERIES, {"b.weight": "3, rnn.l1", "rnn.weight_hh_l0": "rnn + rnn + rnn + rnn, rnn"},
    ),
    "learned_initial_state": (
        Net(
            lambda n, x: n.b(n.rnn(x, n.h0.expand(1, 3, 8).contiguous())[0]),
            rnn=nn.GRU(6, 8, batch_first=True), h0=nn.Parameter(torch.zeros(1, 1, 8)),
            b=nn.Linear(8, 3),
        ),
        SERIES, {"h0": "1, 1, h0", "b.weight": "3, h0"},
    ),
    "lstm_cell": (
        Net(unrolled, cell=nn.LSTMCell(6, 8), b=nn.Linear(8, 3)),
        SERIES, {"cell.weight_hh": "cell + cell + cell + cell, cell"},
    ),
    "gru_cell": (
        Net(unrolled_gru, cell=nn.GRUCell(6, 8), b=nn.Linear(8, 3)),
        SERIES, {"cell.weight_hh": "cell + cell + cell, cell"},
    ),
    "multihead_attention": (
        Net(
            lambda n, x: n.b(n.att(y := n.a(x), y, y)[0]),
            a=nn.Linear(6, 8), att=nn.MultiheadAttention(8, 2, batch_first=True), b=nn.Linear(8, 3),
        ),
        SERIES, {"att.in_proj_weight": "3 x att x att.units2, a", "b.weight": "3, att.out_proj"},
    ),
    "multihead_attention_separate": (
        Net(
            lambda n, x: n.b(n.att(n.a(x), x, x)[0]),
            a=nn.Linear(6, 8), att=nn.MultiheadAttention(8, 2, kdim=6, vdim=6, batch_first=True),
            b=nn.Linear(8, 3),
        ),
        SERIES, {"att.q_proj_weight": "att x att.units2, a", "b.weight": "3, att.out_proj"},
    ),
    "separate_attention": (
        Net(separate_attention, **linears, b=nn.Linear(8, 3)),
        SERIES, {"k.weight": "q x q.units2, 6", "v.weight": "q x v, 6", "b.weight": "3, q x v"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_groups_of(name):
    model, x, axes = CASES[name]
    spec = derive_spec(model, (x,))
    assert {tensor: spec.describe(tensor) for tensor in axes} == axes
    spec.check(model.state_dict())
