"""Operators, and uses of them, that few networks have: their groups, and proven as all others."""

import pytest
import torch
from torch import nn
from torch.nn import functional as fn

from fedma_flwr.structure import derive_spec
from tests.structure.networks import Net, convnet, mlp, tokens

VECTOR = torch.zeros(4, 6)
ONE = torch.zeros(6)  # a vector without a batch
IMAGE = torch.zeros(2, 2, 6, 6)
SERIES = torch.zeros(3, 5, 6)
VOLUME = torch.zeros(2, 1, 6, 6, 6)


def parameter(*shape):
    return nn.Parameter(torch.randn(shape))


def grouped_attention(net, x):
    """Four heads of queries share two heads of keys and values."""
    q, k, v = (
        layer(x).unflatten(-1, (heads, -1)).transpose(1, 2)
        for layer, heads in ((net.q, 4), (net.k, 2), (net.v, 2))
    )
    y = fn.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    return net.b(y.transpose(1, 2).flatten(2))


def units_as_tokens(**options):
    """Units of one layer attend to those of another: the axes that are tokens elsewhere."""

    def run(net, x):
        q, k = net.c(x)[..., None] * net.width, net.a(x)[..., None] * net.width
        mask = net.m if "m" in dict(net.named_parameters()) else None
        y = fn.scaled_dot_product_attention(q, k, k, attn_mask=mask, **options)
        return net.b(y.sum(-1))

    return run


def attending(run, **parts):
    layers = {"a": nn.Linear(6, 8), "c": nn.Linear(6, 5), "b": nn.Linear(5, 3)}
    return Net(run, **layers, width=parameter(2), **parts)


def spread_out(net, x):
    variance, mean = torch.var_mean(x, (2, 3), keepdim=True)
    return (x - mean) / (variance + 1).sqrt()


def zeros_of_two_uses(net, x):
    h = x.new_zeros(2, 3, 8)
    return net.b(net.rnn(x, h)[0][:, -1] + h[0])


def mutated_outside_the_state_dict(net, x):
    if net.training:
        net.level.copy_(0.9 * net.level + 0.1 * x.mean(0))
    return x - net.level


def with_a_level_of_its_own():
    model = mlp(mutated_outside_the_state_dict)
    model.register_buffer("level", torch.zeros(8), persistent=False)
    return model


# name: network, input, {tensor: its axes}
CASES = {
    "attention_of_shared_heads": (
        Net(
            grouped_attention, q=nn.Linear(6, 12), k=nn.Linear(6, 6), v=nn.Linear(6, 10),
            b=nn.Linear(20, 3),
        ),
        SERIES, {"q.weight": "4 x q, 6", "k.weight": "2 x q, 6", "b.weight": "3, 4 x v"},
    ),
    "attention_between_units": (
        attending(units_as_tokens()), VECTOR, {"a.weight": "a, 6", "b.weight": "3, c"},
    ),
    "attention_with_a_mask_of_units": (
        attending(units_as_tokens(), m=parameter(5, 8)),
        VECTOR, {"m": "c, a", "a.weight": "a, 6", "b.weight": "3, c"},
    ),
    "causal_attention_between_units": (
        attending(units_as_tokens(is_causal=True)),
        VECTOR, {"a.weight": "8, 6", "c.weight": "5, 6"},
    ),
    "one_hot": (
        Net(lambda n, x: n.b(n.a(fn.one_hot(x, 7).float())), a=nn.Linear(7, 8), b=nn.Linear(8, 3)),
        tokens(7, 2, 5), {"a.weight": "a, 7", "b.weight": "3, a"},
    ),
    "cosine_similarity_of_maps": (
        Net(
            lambda n, x: fn.cosine_similarity(n.a(x), n.c(x), dim=1),
            a=nn.Conv2d(2, 8, 1), c=nn.Conv2d(2, 8, 1),
        ),
        IMAGE, {"a.weight": "a, 2, 1, 1", "c.weight": "a, 2, 1, 1"},
    ),
    "pairwise_distance": (
        Net(
            lambda n, x: fn.pairwise_distance(n.a(x), n.c(x)), a=nn.Linear(6, 8), c=nn.Linear(6, 8),
        ),
        SERIES, {"a.weight": "a, 6", "c.weight": "a, 6"},
    ),
    "distances_to_prototypes": (
        mlp(lambda n, x: torch.cdist(x[:, None], n.p)[:, 0], p=parameter(5, 8), into=5),
        VECTOR, {"p": "p, a", "b.weight": "3, p"},
    ),
    "grouped_into_few": (
        convnet(lambda n, x: n.g(x), g=nn.Conv2d(8, 2, 3, groups=2), into=2),
        IMAGE, {"g.weight": "a, a.units2, 3, 3", "b.weight": "3, a, 1, 1"},
    ),
    "one_slope_without_a_batch": (
        mlp(lambda n, x: n.p(x), p=nn.PReLU()), ONE, {"p.weight": "1", "b.weight": "3, a"},
    ),
    "stacked_side_by_side": (
        mlp(lambda n, x: torch.hstack([x, n.c(x)]), c=nn.Linear(8, 5), into=13),
        VECTOR, {"b.weight": "3, a + c"},
    ),
    "stacked_without_a_batch": (
        mlp(lambda n, x: torch.hstack([x, n.c(x)]), c=nn.Linear(8, 5), into=13),
        ONE, {"b.weight": "3, a + c"},
    ),
    "stacked_on_each_other": (
        mlp(lambda n, x: torch.vstack([x, n.c(x)]), c=nn.Linear(8, 8)),
        VECTOR, {"c.weight": "a, a", "b.weight": "3, a"},
    ),
    "steps_picked_by_number": (
        mlp(lambda n, x: x[:, torch.tensor([0, 2])]), SERIES, {"b.weight": "3, a"},
    ),
    "examples_and_steps_picked_by_number": (
        mlp(lambda n, x: x.transpose(1, 2)[torch.tensor([0, 2]), :, torch.tensor([1, 4])]),
        SERIES, {"b.weight": "3, a"},
    ),
    "weight_of_one_output": (
        Net(lambda n, x: fn.linear(n.a(x).relu(), n.w), a=nn.Linear(6, 8), w=parameter(8)),
        VECTOR, {"a.weight": "a, 6", "w": "a"},
    ),
    "products_summed_over_the_batch": (
        mlp(
            lambda n, x: torch.addbmm(n.c, x, n.w), w=parameter(3, 8, 4), c=parameter(4), into=4,
        ),
        SERIES, {"w": "3, a, c", "c": "c", "b.weight": "3, c"},
    ),
    "einsum_with_dots": (
        mlp(lambda n, x: torch.einsum("...i,oi->...o", x, n.w), w=parameter(5, 8), into=5),
        VECTOR, {"w": "5, 8", "a.weight": "8, 6", "b.weight": "3, 5"},
    ),
    "einsum_without_an_arrow": (
        mlp(lambda n, x: torch.einsum("ni,oi", x, n.w), w=parameter(5, 8), into=5),
        VECTOR, {"w": "5, 8", "a.weight": "8, 6", "b.weight": "3, 5"},
    ),
    "einsum_with_a_repeated_letter": (
        mlp(lambda n, x: x + torch.einsum("ii->i", n.w), w=parameter(8, 8)),
        VECTOR, {"w": "8, 8", "b.weight": "3, 8"},
    ),
    "einsum_that_broadcasts": (
        mlp(lambda n, x: torch.einsum("ni,ni->ni", n.s, x), s=parameter(1, 8)),
        VECTOR, {"s": "1, a", "b.weight": "3, a"},
    ),
    "zeros_that_others_see": (
        Net(zeros_of_two_uses, rnn=nn.GRU(6, 8, 2, batch_first=True), b=nn.Linear(8, 3)),
        SERIES, {"rnn.weight_ih_l1": "rnn + rnn + rnn, rnn", "b.weight": "3, rnn"},
    ),
    "cell_without_a_batch": (
        Net(lambda n, x: n.b(n.cell(x)), cell=nn.RNNCell(6, 8), b=nn.Linear(8, 3)),
        ONE, {"cell.weight_hh": "cell, cell", "b.weight": "3, cell"},
    ),
    "variance_and_mean": (convnet(spread_out), IMAGE, {"b.weight": "3, a, 1, 1"}),
    "pooled_volumes": (
        Net(
            lambda n, x: n.b(fn.avg_pool3d(fn.max_pool3d(n.a(x), 2), 3)),
            a=nn.Conv3d(1, 8, 1), b=nn.Conv3d(8, 2, 1),
        ),
        VOLUME, {"b.weight": "2, a, 1, 1, 1"},
    ),
    "pooled_volumes_and_where": (
        Net(
            lambda n, x: n.b(fn.max_pool3d(n.a(x), 2, return_indices=True)[0]),
            a=nn.Conv3d(1, 8, 1), b=nn.Conv3d(8, 2, 1),
        ),
        VOLUME, {"b.weight": "2, a, 1, 1, 1"},
    ),
    "pooled_maps_and_where": (
        convnet(lambda n, x: fn.max_pool2d(x, 2, return_indices=True)[0]),
        IMAGE, {"b.weight": "3, a, 1, 1"},
    ),
    "repeated_one_by_one": (
        mlp(lambda n, x: x.repeat_interleave(2, 1), into=16), VECTOR, {"b.weight": "3, a x 2"},
    ),
    "repeated_as_a_whole": (
        mlp(lambda n, x: x.repeat(1, 2), into=16), VECTOR, {"b.weight": "3, 2 x a"},
    ),
    "cut_by_padding": (
        mlp(lambda n, x: x.sum(1, keepdim=True) + fn.pad(x, (-1, 0)), into=7),
        VECTOR, {"a.weight": "1 + a, 6", "b.weight": "3, a"},
    ),
    "channel_shuffle_of_torch": (
        convnet(lambda n, x: n.s(x), s=nn.ChannelShuffle(2)),
        IMAGE, {"a.weight": "a x a.units2, 2, 1, 1", "b.weight": "3, a.units2 x a, 1, 1"},
    ),
    "unfolded": (
        Net(
            lambda n, x: n.b(fn.unfold(n.a(x), 2).transpose(1, 2)),
            a=nn.Conv2d(2, 8, 1), b=nn.Linear(32, 3),
        ),
        IMAGE, {"b.weight": "3, a x 4"},
    ),
    "folded": (
        Net(
            lambda n, x: n.b(fn.fold(n.a(x).transpose(1, 2), (6, 6), 2, stride=2)),
            a=nn.Linear(6, 32), b=nn.Conv2d(8, 3, 1),
        ),
        torch.zeros(2, 9, 6), {"a.weight": "a x 4, 6", "b.weight": "3, a, 1, 1"},
    ),
    "split_side_by_side": (
        mlp(lambda n, x: (h := torch.hsplit(x, 2))[0] * h[1], into=4),
        VECTOR, {"a.weight": "a + a, 6", "b.weight": "3, a"},
    ),
    "split_without_a_batch": (
        mlp(lambda n, x: (h := torch.hsplit(x, 2))[0] * h[1], into=4),
        ONE, {"a.weight": "a + a, 6", "b.weight": "3, a"},
    ),
    "changed_outside_the_state_dict": (
        with_a_level_of_its_own(), VECTOR, {"a.weight": "8, 6", "b.weight": "3, 8"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_groups_of(name):
    model, x, axes = CASES[name]
    spec = derive_spec(model, (x,))
    assert {tensor: spec.describe(tensor) for tensor in axes} == axes
