"""Models built to fool the derivation: what is not sure is pinned, or the model is refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional as fn

from fedma_flwr.structure import UnsupportedModelError, derive_spec
from tests.structure.networks import Net, convnet, mlp

VECTOR = torch.zeros(4, 6)
IMAGE = torch.zeros(2, 2, 6, 6)


def lopsided(net, x):
    x = net.a(x)
    return net.b(x.flip(1) if net.training else x)


def same_layer_on_inputs(net, x):
    return net.b(net.a(net.a(x)))


def aux(net, x):
    x = net.a(x)
    return (net.b(x), net.aux(x.cumsum(1))) if net.training else net.b(x)


def generator():
    return torch.Generator().manual_seed(0)


def seeded(net, x):
    torch.manual_seed(3)
    return x * torch.rand(8)


ORDERED = {
    "sort": lambda n, x: x.sort(1)[0],
    "topk": lambda n, x: x.topk(8, 1)[0],
    "cumsum": lambda n, x: x.cumsum(1),
    "cumprod": lambda n, x: x.cumprod(1),
    "cummax": lambda n, x: x.cummax(1)[0],
    "units_of_a_buffer_alone": lambda n, x: torch.zeros_like(x) + n.features,
    "flip": lambda n, x: x.flip(1),
    "roll": lambda n, x: x.roll(1, 1),
    "positions": lambda n, x: x * torch.arange(8),
    "buffer_outside_the_state_dict": lambda n, x: x * n.scale,
    "order_in_a_buffer": lambda n, x: x[:, n.order],
    "gather": lambda n, x: x.gather(1, n.order.expand(4, 8)),
    "index_select": lambda n, x: x.index_select(1, n.order),
    "constant_matrix": lambda n, x: x @ torch.eye(8, dtype=x.dtype).flip(0),
    "triangle": lambda n, x: torch.einsum("ni,ij->nj", x, torch.ones(8, 8, dtype=x.dtype).tril()),
    "convolved_units": lambda n, x: fn.avg_pool1d(x[:, None], 3, 1, 1)[:, 0],
    "padded_with_neighbours": lambda n, x: fn.pad(x[:, None], (1, 1), mode="circular")[:, 0, :8],
    "position_of_the_largest": lambda n, x: x * x.argmax(1, keepdim=True),
    "position_of_the_maximum": lambda n, x: x * x.max(1, keepdim=True)[1],
    "fourier": lambda n, x: torch.fft.fft(x, dim=1).real,
    "noise_of_a_generator": lambda n, x: x + torch.rand(8, generator=generator()),
    "noise_of_a_stored_draw": lambda n, x: x + n.scale,
    "written_by_number": lambda n, x: x.index_add(1, n.order, x),
    "mask_in_a_buffer": lambda n, x: torch.where(n.order > 3, x, -x),
    "constants_in_a_buffer": lambda n, x: x * n.features,
    "scattered": lambda n, x: torch.zeros_like(x).scatter(1, n.order.expand(4, 8), x),
    "put_by_number": lambda n, x: x.index_put((n.order[:4] * 0, n.order[:4]), x[0, :4]),
    "encoded_positions": lambda n, x: x + torch.sin(torch.linspace(0, 1, 8, dtype=x.dtype)),
    "convolution_over_units": lambda n, x: fn.conv1d(x[:, None], n.kernel, padding=1)[:, 0],
    "interpolated_units": lambda n, x: fn.interpolate(x[:, None], size=8, mode="linear")[:, 0],
    "pooled_units": lambda n, x: fn.max_pool1d(x[:, None], 3, 1, 1)[:, 0],
    "largest_as_a_number": lambda n, x: x * fn.one_hot(x.argmax(1), 8),
    "mixed_with_the_batch": lambda n, x: x + x[:, :4].T.repeat(1, 2),
    "every_third": lambda n, x: torch.cat([x[:, ::3], x[:, 1::3], x[:, 2::3]], 1),
}


@pytest.mark.parametrize("case", ORDERED)
def test_an_order_of_units_pins_them(case):
    kernel = torch.rand(1, 1, 3)
    model = mlp(ORDERED[case], order=torch.randperm(8), features=torch.rand(8), kernel=kernel)
    model.register_buffer("scale", torch.rand(8), persistent=False)
    spec = derive_spec(model, (VECTOR,))
    assert spec.describe("b.weight") == "3, 8"
    assert not spec.groups


def test_noise_of_a_seed_set_inside_is_no_noise():
    with pytest.raises(UnsupportedModelError, match="Permuting the units of group 'a'"):
        derive_spec(mlp(seeded), (VECTOR,))


def test_a_training_only_order_pins_units():
    model = Net(lopsided, a=nn.Linear(6, 8), b=nn.Linear(8, 3))
    assert not derive_spec(model, (VECTOR,)).groups


def test_a_training_only_branch_pins_what_it_touches():
    model = Net(aux, a=nn.Linear(6, 8), b=nn.Linear(8, 3), aux=nn.Linear(8, 3))
    spec = derive_spec(model, (VECTOR,))
    assert spec.describe("a.weight") == "8, 6"
    assert "order" in spec.pinned["a.weight[0]"]


def test_a_weight_used_on_inputs_too_is_pinned():
    model = Net(same_layer_on_inputs, a=nn.Linear(6, 6), b=nn.Linear(6, 3))
    assert not derive_spec(model, (VECTOR,)).groups


def test_a_weight_used_in_two_roles_gets_one_order_for_both():
    model = mlp(lambda n, x: fn.linear(n.c(x).relu(), n.c.weight.T), c=nn.Linear(8, 8))
    spec = derive_spec(model, (VECTOR,))
    assert spec.describe("c.weight") == "c, a"


def test_normalising_neighbours_pins_channels():
    model = convnet(lambda n, x: n.norm(x), norm=nn.LocalResponseNorm(3))
    assert derive_spec(model, (IMAGE,)).describe("a.weight") == "8, 2, 1, 1"


def test_units_read_one_by_one_stand_apart():
    spec = derive_spec(mlp(lambda n, x: x * x[:, :1]), (VECTOR,))
    assert spec.describe("a.weight") == "1 + a, 6"


def test_part_of_an_axis_is_pinned_with_its_reason():
    spec = derive_spec(mlp(lambda n, x: torch.cat([x[:, :3].cumsum(1), x[:, 3:]], 1)), (VECTOR,))
    assert spec.describe("a.weight") == "3 + a, 6"
    assert "cumsum" in spec.pinned["a.weight[0]"]
    assert "cumsum" in str(spec)


def test_of_units_that_mix_with_the_batch_only_whole_blocks_are_left():
    model = Net(lambda n, x: n.b(n.a(x).t().reshape(4, 8)), a=nn.Linear(6, 8), b=nn.Linear(8, 3))
    spec = derive_spec(model, (VECTOR,))
    assert spec.describe("a.weight") == "4 x a, 6"
    assert spec.describe("b.weight") == "3, a x 4"


def test_flowers_quickstart_network_has_one_fixed_group():
    from tests.structure.networks import Quickstart

    spec = derive_spec(Quickstart(), (torch.zeros(2, 3, 32, 32),))
    assert {name: group.growable for name, group in spec.groups.items()} == {
        "conv1": True, "conv2": False, "fc1": True, "fc2": True,
    }  # fmt: skip
    assert spec.describe("fc1.weight") == "fc1, conv2 x 25"
    reason = spec.groups["conv2"].reason
    assert reason.startswith("the model does not run with more units (")
    assert reason in str(spec)
