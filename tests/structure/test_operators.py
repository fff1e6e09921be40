"""Every operator family: the groups that are found, described at a telling tensor, and proven."""

import pytest
import torch
from torch import nn
from torch.nn import functional as fn

from fedma_flwr.structure import derive_spec
from tests.structure.networks import Net, convnet, mlp, tokens

VECTOR = torch.zeros(4, 6)
IMAGE = torch.zeros(2, 2, 6, 6)
SERIES = torch.zeros(3, 5, 6)


def squeeze_excite(net, x):
    scale = torch.sigmoid(net.up(fn.relu(net.down(x.mean((2, 3), keepdim=True)))))
    return x * scale


def shuffle(net, x):
    return x.view(2, 2, 4, 6, 6).transpose(1, 2).reshape(2, 8, 6, 6)


def experts(net, x):
    """Weights of several networks side by side, with the weights first in one of the sums."""
    hidden = torch.einsum("edh,bd->beh", net.up, x).relu()
    return x + torch.einsum("be,beh,ehd->bd", net.gate(x).softmax(-1), hidden, net.down)


def fill_in_place(net, x):
    y = torch.zeros_like(x)
    y[:, :3] = x[:, :3]
    y[:, 3:] += 2 * x[:, 3:]
    return y


# name: network, input, {tensor: its axes}
CASES = {
    "linear": (mlp(lambda n, x: x.relu()), VECTOR, {"b.weight": "3, a"}),
    "conv1d": (
        Net(lambda n, x: n.b(n.a(x)), a=nn.Conv1d(5, 8, 3), b=nn.Conv1d(8, 2, 3)),
        SERIES, {"b.weight": "2, a, 3"},
    ),
    "conv3d": (
        Net(lambda n, x: n.b(n.a(x)), a=nn.Conv3d(1, 8, 2), b=nn.Conv3d(8, 2, 2)),
        torch.zeros(2, 1, 4, 4, 4), {"b.weight": "2, a, 2, 2, 2"},
    ),
    "transposed": (
        convnet(lambda n, x: n.t(x), t=nn.ConvTranspose2d(8, 5, 2), into=5),
        IMAGE, {"t.weight": "a, t, 2, 2", "b.weight": "3, t, 1, 1"},
    ),
    "transposed_grouped": (
        convnet(lambda n, x: n.t(x), t=nn.ConvTranspose2d(8, 6, 2, groups=2), into=12 // 2),
        IMAGE, {"t.weight": "a x a.units2, t, 2, 2", "b.weight": "3, a x t, 1, 1"},
    ),
    "grouped": (
        convnet(lambda n, x: n.g(x), g=nn.Conv2d(8, 6, 3, groups=2), into=6),
        IMAGE, {"g.weight": "a x g, a.units2, 3, 3"},
    ),
    "depthwise": (
        convnet(lambda n, x: n.g(x), g=nn.Conv2d(8, 8, 3, groups=8)),
        IMAGE, {"g.weight": "a, 1, 3, 3", "b.weight": "3, a, 1, 1"},
    ),
    "depthwise_of_two": (
        convnet(lambda n, x: n.g(x), channels=2, g=nn.Conv2d(2, 2, 3, groups=2)),
        IMAGE, {"g.weight": "a, 1, 3, 3", "b.weight": "3, a, 1, 1"},
    ),
    "depthwise_multiplied": (
        convnet(lambda n, x: n.g(x), g=nn.Conv2d(8, 16, 3, groups=8), into=16),
        IMAGE, {"g.weight": "a x g, 1, 3, 3", "b.weight": "3, a x g, 1, 1"},
    ),
    "embedding": (
        Net(lambda n, x: n.b(n.a(x)), a=nn.Embedding(7, 8), b=nn.Linear(8, 3)),
        tokens(7, 2, 5), {"a.weight": "7, a", "b.weight": "3, a"},
    ),
    "embedding_bag": (
        Net(lambda n, x: n.b(n.a(x)), a=nn.EmbeddingBag(7, 8), b=nn.Linear(8, 3)),
        tokens(7, 2, 5), {"a.weight": "7, a"},
    ),
    "batch_norm": (
        convnet(lambda n, x: n.bn(x).relu(), bn=nn.BatchNorm2d(8)), IMAGE, {"bn.running_var": "a"},
    ),
    "group_norm": (
        convnet(lambda n, x: n.gn(x), gn=nn.GroupNorm(2, 8)),
        IMAGE, {"gn.weight": "a x a.units2", "b.weight": "3, a x a.units2, 1, 1"},
    ),
    "layer_norm": (mlp(lambda n, x: n.ln(x), ln=nn.LayerNorm(8)), VECTOR, {"ln.bias": "a"}),
    "layer_norm_of_maps": (
        convnet(lambda n, x: n.ln(x), ln=nn.LayerNorm((8, 6, 6))), IMAGE, {"ln.weight": "a, 6, 6"},
    ),
    "rms_norm": (mlp(lambda n, x: n.ln(x), ln=nn.RMSNorm(8)), VECTOR, {"ln.weight": "a"}),
    "instance_norm": (
        convnet(
            lambda n, x: n.norm(x),
            norm=nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
        ),
        IMAGE, {"norm.running_mean": "a", "norm.weight": "a"},
    ),
    "residual": (
        mlp(lambda n, x: x + n.c(x).relu(), c=nn.Linear(8, 8)), VECTOR, {"c.weight": "a, a"},
    ),
    "concatenation": (
        mlp(lambda n, x: torch.cat([x, n.c(x)], 1), c=nn.Linear(8, 5), into=13),
        VECTOR, {"b.weight": "3, a + c"},
    ),
    "stack": (
        mlp(lambda n, x: torch.stack([x, n.c(x)], 1).sum(1), c=nn.Linear(8, 8)),
        VECTOR, {"c.weight": "a, a"},
    ),
    "split": (
        mlp(lambda n, x: torch.cat([p := x.split([3, 5], 1)[0], p], 1), into=6),
        VECTOR, {"a.weight": "a + 5, 6", "b.weight": "3, a + a"},
    ),
    "chunk_and_gate": (
        mlp(lambda n, x: (c := x.chunk(2, 1))[0] * c[1].sigmoid(), into=4),
        VECTOR, {"a.weight": "a + a, 6", "b.weight": "3, a"},
    ),
    "glu": (mlp(lambda n, x: fn.glu(x), into=4), VECTOR, {"a.weight": "a + a, 6"}),
    "flatten": (
        Net(lambda n, x: n.b(n.a(x).flatten(1)), a=nn.Conv2d(2, 8, 3), b=nn.Linear(128, 3)),
        IMAGE, {"b.weight": "3, a x 16"},
    ),
    "flatten_channels_last": (
        Net(
            lambda n, x: n.b(n.a(x).permute(0, 2, 3, 1).flatten(1)),
            a=nn.Conv2d(2, 8, 3), b=nn.Linear(128, 3),
        ),
        IMAGE, {"b.weight": "3, 16 x a"},
    ),
    "flatten_concatenated": (
        Net(
            lambda n, x: n.b(torch.cat([n.a(x), n.c(x)], 1).flatten(1)),
            a=nn.Conv2d(2, 8, 3), c=nn.Conv2d(2, 4, 3), b=nn.Linear(192, 3),
        ),
        IMAGE, {"b.weight": "3, a x 16 + c x 16"},
    ),
    "unflatten_and_back": (
        mlp(lambda n, x: x.unflatten(1, (2, 4)).relu().flatten(1)),
        VECTOR, {"b.weight": "3, a x a.units2"},
    ),
    "pixel_shuffle": (
        convnet(lambda n, x: fn.pixel_shuffle(x, 2), into=2),
        IMAGE, {"a.weight": "a x 4, 2, 1, 1", "b.weight": "3, a, 1, 1"},
    ),
    "pixel_unshuffle": (
        convnet(lambda n, x: fn.pixel_unshuffle(x, 2), into=32),
        IMAGE, {"b.weight": "3, a x 4, 1, 1"},
    ),
    "channel_shuffle": (convnet(shuffle), IMAGE, {"b.weight": "3, a.units2 x a, 1, 1"}),
    "pooling": (
        convnet(lambda n, x: fn.avg_pool2d(fn.max_pool2d(x, 2), 3)),
        IMAGE, {"b.weight": "3, a, 1, 1"},
    ),
    "adaptive_pooling": (
        convnet(lambda n, x: fn.adaptive_avg_pool2d(x, 2)), IMAGE, {"b.weight": "3, a, 1, 1"},
    ),
    "interpolation": (
        convnet(lambda n, x: fn.interpolate(x, scale_factor=2.0, mode="bilinear")),
        IMAGE, {"b.weight": "3, a, 1, 1"},
    ),
    "padding": (
        convnet(lambda n, x: fn.pad(fn.pad(x, (1, 1)), (1, 1, 2, 2), mode="reflect")),
        IMAGE, {"b.weight": "3, a, 1, 1"},
    ),
    "padded_channels": (
        convnet(
            lambda n, x: n.c(x) + fn.pad(x, (0, 0, 0, 0, 1, 3)), c=nn.Conv2d(8, 12, 1), into=12
        ),
        IMAGE, {"b.weight": "3, 1 + a + c, 1, 1"},
    ),
    "softmax": (mlp(lambda n, x: x.softmax(1)), VECTOR, {"b.weight": "3, a"}),
    "normalised": (mlp(lambda n, x: fn.normalize(x, dim=1)), VECTOR, {"b.weight": "3, a"}),
    "dropout": (mlp(lambda n, x: n.d(x), d=nn.Dropout(0.5)), VECTOR, {"b.weight": "3, a"}),
    "prelu": (mlp(lambda n, x: n.p(x), p=nn.PReLU(8)), VECTOR, {"p.weight": "a"}),
    "squeeze_and_excitation": (
        convnet(squeeze_excite, down=nn.Conv2d(8, 2, 1), up=nn.Conv2d(2, 8, 1)),
        IMAGE, {"down.weight": "down, a, 1, 1", "up.weight": "a, down, 1, 1"},
    ),
    "channel_attention": (
        convnet(lambda n, x: x * x.max(1, keepdim=True)[0].sigmoid()),
        IMAGE, {"b.weight": "3, a, 1, 1"},
    ),
    "einsum": (
        mlp(
            lambda n, x: torch.einsum("ni,oi->no", x, n.w),
            w=nn.Parameter(torch.zeros(5, 8)), into=5,
        ),
        VECTOR, {"w": "w, a", "b.weight": "3, w"},
    ),
    "experts": (
        mlp(
            experts, gate=nn.Linear(8, 3),
            up=nn.Parameter(torch.zeros(3, 8, 5)), down=nn.Parameter(torch.zeros(3, 5, 8)),
        ),
        VECTOR, {"up": "gate, a, up", "down": "gate, up, a", "gate.weight": "gate, a"},
    ),
    "plain_matrices": (
        mlp(lambda n, x: x @ n.w + n.c, w=nn.Parameter(torch.zeros(8, 5)),
            c=nn.Parameter(torch.zeros(5)), into=5),
        VECTOR, {"w": "a, w", "c": "w", "b.weight": "3, w"},
    ),
    "bilinear": (
        mlp(lambda n, x: n.c(x, x), c=nn.Bilinear(8, 8, 5), into=5),
        VECTOR, {"c.weight": "c, a, a"},
    ),
    "buffers": (
        mlp(lambda n, x: x * n.mask, mask=torch.ones(8)), VECTOR, {"mask": "a", "b.weight": "3, a"},
    ),
    "in_place": (mlp(fill_in_place), VECTOR, {"b.weight": "3, a + a.units2"}),
    "without_gradients": (
        mlp(lambda n, x: x + _frozen(n.c, x), c=nn.Linear(8, 8)), VECTOR, {"c.weight": "a, a"},
    ),
    "tied": (
        Net(lambda n, x: fn.linear(n.a(x), n.a.weight), a=nn.Embedding(7, 8)),
        tokens(7, 2, 5), {"a.weight": "7, a"},
    ),
    "weight_norm": (
        mlp(lambda n, x: n.c(x), c=nn.utils.parametrizations.weight_norm(nn.Linear(8, 5)), into=5),
        VECTOR, {"c.parametrizations.weight.original1": "c.parametrizations.weight.original1, a"},
    ),
    "mean_of_units": (
        Net(lambda n, x: n.a(x).relu().mean(1), a=nn.Linear(6, 8)), VECTOR, {"a.weight": "a, 6"},
    ),
}  # fmt: skip


def _frozen(layer, x):
    with torch.no_grad():
        return layer(x)


@pytest.mark.parametrize("name", CASES)
def test_groups_of(name):
    model, x, axes = CASES[name]
    spec = derive_spec(model, (x,))
    assert {tensor: spec.describe(tensor) for tensor in axes} == axes
    spec.check(model.state_dict())
