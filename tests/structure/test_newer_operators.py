"""Operators that losses, message passing, complex numbers, noise and quantisation bring along."""

import pytest
import torch
from torch import nn
from torch.ao import quantization
from torch.nn import functional as fn
from torchvision.ops import deform_conv2d

from fedma_flwr import FedMA
from fedma_flwr.structure import derive_spec
from tests.structure.networks import Net, convnet, mlp

VECTOR = torch.zeros(4, 6)
SERIES = torch.zeros(3, 8, 6)
IMAGE = torch.zeros(2, 2, 8, 8)
GROUPED = {"b.weight": "3, a"}
ROWS = torch.tensor([0, 2, 2, 1])


def labels(x):
    return torch.zeros(len(x), dtype=torch.long)


def spectral(net, x):
    """A layer of a Fourier neural operator: frequencies are mixed by complex weights."""
    h = torch.fft.rfft(net.a(x), dim=1)[:, :3]
    h = torch.einsum("bti,tio->bto", h, net.w)
    return net.b(torch.fft.irfft(h, n=8, dim=1))


def rotated(net, x):
    turn = torch.polar(torch.ones(8), torch.arange(8.0))[:, None]
    return torch.view_as_real(torch.complex(net.a(x), net.c(x)) * turn)[..., 0]


def reparametrised(net, x):
    mean, deviation = net.a(x), net.c(x).exp()
    return net.b(torch.distributions.Normal(mean, deviation).rsample())


def masked_at_random(net, x):
    return x * torch.bernoulli(torch.full_like(x, 0.5)) if net.training else x


def unpooled(net, x):
    pooled, places = fn.max_pool2d(x, 2, return_indices=True)
    return fn.max_unpool2d(pooled, places, 2)


def scattered_mean(net, x):
    counts = torch.zeros(4, 1).scatter_reduce(0, ROWS[:, None], torch.ones(4, 1), "sum")
    sums = torch.zeros_like(x).scatter_add(0, ROWS[:, None].expand_as(x), x)
    return sums / counts.clamp(min=1)


def rounded():
    return quantization.FakeQuantize(observer=quantization.MovingAverageMinMaxObserver)


def quantised(net, x):
    return net.b(fn.linear(x, net.q(net.a.weight)).relu())


def deformed(net, x):
    return net.b(deform_conv2d(net.a(x), net.f(x), net.w, padding=1).relu().mean((2, 3)))


def orthogonal_units(net, x):
    y = net.b(net.a(x).relu())
    if not net.training:
        return y
    gram = net.a.weight @ net.a.weight.T
    return y, (gram - torch.eye(len(gram))).square().sum(), torch.logdet(gram.matrix_exp())


def parts(**others):
    return {"a": nn.Linear(6, 8), "b": nn.Linear(8, 3), **others}


# name: network, inputs, {tensor: its axes}
CASES = {
    "cross_entropy_of_units": (
        mlp(lambda n, x: x * fn.cross_entropy(x, labels(x))), VECTOR, {"b.weight": "3, 8"},
    ),
    "loss_with_soft_labels": (
        mlp(lambda n, x: x * fn.cross_entropy(x, x.softmax(1))), VECTOR, GROUPED,
    ),
    "nll_in_the_head": (
        Net(lambda n, x: fn.nll_loss(n.b(n.a(x)).log_softmax(1), labels(x)), **parts()),
        VECTOR, GROUPED,
    ),
    "mse": (mlp(lambda n, x: x * fn.mse_loss(x, x.tanh())), VECTOR, GROUPED),
    "smooth_loss_unreduced": (
        mlp(lambda n, x: fn.smooth_l1_loss(x, x.tanh(), reduction="none")), VECTOR, GROUPED,
    ),
    "columns": (
        mlp(lambda n, x: torch.column_stack([x[:, 0] + x.sum(1), x]), into=9),
        VECTOR, {"b.weight": "3, 2 + a"},
    ),
    "broadcast": (
        mlp(lambda n, x: torch.broadcast_tensors(x, x[:1], x)[1]), VECTOR, GROUPED,
    ),
    "windows_of_inputs": (
        Net(lambda n, x: n.b(n.a(x.unfold(1, 4, 2).mean(1)).relu()), a=nn.Linear(4, 8),
            b=nn.Linear(8, 3)),
        VECTOR, GROUPED,
    ),
    "norm_of_a_weight": (
        mlp(lambda n, x: x / torch.linalg.norm(n.a.weight, dim=1)), VECTOR, GROUPED,
    ),
    "unpooled": (convnet(unpooled), IMAGE, {"b.weight": "3, a, 1, 1"}),
    "deformed": (
        Net(deformed, a=nn.Conv2d(2, 6, 1), f=nn.Conv2d(2, 18, 3, padding=1),
            w=nn.Parameter(torch.randn(8, 6, 3, 3)), b=nn.Linear(8, 3)),
        IMAGE, {"w": "w, a, 3, 3", "f.weight": "18, 2, 3, 3"},
    ),
    "added_to_rows": (
        mlp(lambda n, x: torch.zeros_like(x).index_add(0, ROWS, x)), VECTOR, GROUPED,
    ),
    "mean_by_scatter": (mlp(scattered_mean), VECTOR, GROUPED),
    "gathered_rows": (
        mlp(lambda n, x: x.gather(0, ROWS[:, None].expand_as(x))), VECTOR, GROUPED,
    ),
    "rows_put": (mlp(lambda n, x: x.index_put((ROWS[:2],), x[2:])), VECTOR, GROUPED),
    "rows_masked": (
        mlp(lambda n, x: x.index_put((ROWS == 2,), x.new_zeros(()))), VECTOR, GROUPED,
    ),
    "complex_parameter": (
        Net(spectral, **parts(w=nn.Parameter(torch.randn(3, 8, 8, dtype=torch.cfloat)))),
        SERIES, {"w": "3, a, w", "b.weight": "3, w"},
    ),
    "complex_inside": (
        Net(lambda n, x: n.b(rotated(n, x)), **parts(c=nn.Linear(6, 8))), SERIES, GROUPED,
    ),
    "noise": (
        mlp(lambda n, x: x + n.s * torch.randn_like(x), s=nn.Parameter(torch.rand(8))),
        VECTOR, {**GROUPED, "s": "a"},
    ),
    "reparametrised": (
        Net(reparametrised, **parts(c=nn.Linear(6, 8))), VECTOR, {**GROUPED, "c.weight": "a, 6"},
    ),
    "uniform_in_place": (
        mlp(lambda n, x: x + torch.empty_like(x).uniform_(-1, 1)), VECTOR, GROUPED,
    ),
    "random_mask": (mlp(masked_at_random), VECTOR, GROUPED),
    "random_slopes": (mlp(lambda n, x: fn.rrelu(x, training=n.training)), VECTOR, GROUPED),
    "gumbel": (mlp(lambda n, x: fn.gumbel_softmax(x)), VECTOR, GROUPED),
    "identity": (Net(orthogonal_units, **parts()), VECTOR, GROUPED),
    "division_of_integers": (
        mlp(lambda n, x: x + n.c(torch.arange(len(x))[:, None] / len(x)), c=nn.Linear(1, 8)),
        VECTOR, {**GROUPED, "c.weight": "a, 1"},
    ),
    "quantised": (Net(quantised, **parts(q=rounded())), VECTOR, GROUPED),
    "frequencies_of_places": (
        Net(lambda n, x: n.b(torch.fft.fft(n.a(x), dim=1).abs()), **parts()), SERIES, GROUPED,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_groups_of(name):
    torch.manual_seed(0)
    model, inputs, wanted = CASES[name]
    spec = derive_spec(model, (inputs,))
    assert {tensor: spec.describe(tensor) for tensor in wanted} == wanted


def attention(by_position):
    def run(net, x):
        q, k, v = (layer(x).unflatten(-1, (2, 4)).transpose(1, 2) for layer in net.layers)
        rate = 0.2 if net.training else 0.0
        if by_position:
            y = fn.scaled_dot_product_attention(q, k, v, None, rate)
        else:
            y = fn.scaled_dot_product_attention(q, k, v, dropout_p=rate)
        return net.b(y.transpose(1, 2).flatten(2))

    return Net(run, layers=nn.ModuleList(nn.Linear(6, 8) for _ in range(3)), b=nn.Linear(8, 3))


@pytest.mark.parametrize("by_position", [False, True])
def test_dropout_of_attention_is_switched_off_however_it_is_given(by_position):
    spec = derive_spec(attention(by_position), (SERIES,))
    assert sorted(spec.sizes.values()) == [2, 4, 4]


def test_complex_tensors_are_refused_by_the_strategy_with_the_way_out():
    model, inputs, _ = CASES["complex_parameter"]
    with pytest.raises(ValueError, match=r"complex tensors: w\..*torch\.complex"):
        FedMA(model=model, example_inputs=(inputs,))


def test_little_that_is_matched_is_told_with_reasons(caplog):
    caplog.set_level("INFO", logger="flwr")
    spec = derive_spec(mlp(lambda n, x: x.cumsum(1)), (VECTOR,))
    assert not spec.groups
    assert "No units of Net can be matched" in caplog.text
    assert "its positions are taken in order (2 axes)" in caplog.text
    assert "0% of the model's entries" in str(spec)


def test_what_is_matched_is_told(caplog):
    caplog.set_level("INFO", logger="flwr")
    derive_spec(mlp(lambda n, x: x.relu()), (VECTOR,))
    assert "Net: 1 groups of units, 0 of them at fixed width; 96 % of its" in caplog.text
    assert "can be matched" not in caplog.text


def test_observers_that_are_empty_until_their_first_run():
    torch.manual_seed(0)
    model = nn.Sequential(
        quantization.QuantStub(),
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 3),
        quantization.DeQuantStub(),
    )
    model.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    model = quantization.prepare_qat(model.train())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    spec = derive_spec(model, (torch.randn(2, 1, 6, 6),))
    assert spec.describe("4.weight") == "3, 1. x 16"
    assert {name: value.shape for name, value in model.state_dict().items()} == {
        name: value.shape for name, value in before.items()
    }
