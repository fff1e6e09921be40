"""`derive_spec`: the nine networks, names and order, what it leaves alone, and bad input."""

import copy
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as fn
from torchvision.ops import FrozenBatchNorm2d

from fedma_flwr.structure import (
    PermutationSpec,
    StagePlan,
    derive_spec,
    prove_spec,
    resize,
    sequential_spec,
)
from tests.structure.networks import NINE, VGG9, LeNet, Net, ResNet, convnet, derived, mlp

VECTOR = torch.zeros(4, 6)
# By default the counters of batches, which have no units, would be in the head as well.
HEADS = {"resnet": ("fc.weight", "fc.bias")}


@pytest.mark.parametrize("name", NINE)
def test_the_nine_networks(name):
    model, x, spec = derived(name)
    assert len(spec.groups) >= NINE[name][2]
    assert prove_spec(spec, model, (x,), seed=1).invariance < 1e-9
    assert PermutationSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize("name", NINE)
def test_the_specs_of_the_nine_networks_are_what_they_were(name):
    # The fingerprint of a checkpoint contains the spec: those that are kept must still be read.
    _, _, spec = derived(name)
    expected = json.loads((Path(__file__).parent / "nine_specs.json").read_text("utf-8"))[name]
    assert list(spec.sizes.items()) == list(expected["groups"].items())
    assert {n: spec.describe(n) for n in spec.axes} == expected["axes"]
    assert spec.outputs == expected.get("outputs", {})
    assert list(spec.statistics) == expected.get("statistics", [])
    assert spec.head == (HEADS[name] if name in HEADS else spec.default_head())
    assert spec.pinned == {}


@pytest.mark.parametrize("name", NINE)
def test_every_spec_has_stages_in_which_all_settles(name):
    _, _, spec = derived(name)
    for groups_per_stage in (1, 3, "all"):
        plan = StagePlan.build(spec, groups_per_stage)
        assert sorted(n for stage in plan.stages for n in stage.settles) == sorted(spec.axes)
        matched = set()
        for stage in plan.stages:
            matched |= set(stage.groups)
            assert all(spec.tensor_groups(name) <= matched for name in stage.settles)


@pytest.mark.parametrize("network", [LeNet, VGG9])
def test_sequential_networks_agree_with_the_hand_builder(network):
    x = torch.zeros(2, *((1, 28, 28) if network is LeNet else (3, 32, 32)))
    derived, written = derive_spec(network(), (x,)), sequential_spec(network())
    assert derived.axes == written.axes
    assert derived.groups == written.groups
    assert derived.head == written.head


def test_groups_stand_in_forward_order_under_readable_names():
    spec = derive_spec(ResNet(), (torch.zeros(2, 3, 8, 8),))
    assert list(spec.groups) == [
        "conv", "layers.0.conv1", "layers.1.conv1", "layers.1.conv2", "layers.2.conv1",
    ]  # fmt: skip
    assert spec.head == ("fc.weight", "fc.bias")
    assert "bn.running_var" in spec.statistics
    assert "bn.num_batches_tracked" not in spec.statistics


def test_output_axes_are_those_that_make_units():
    _, _, spec = derived("transformer")
    assert spec.outputs == {"pos": 2, "emb.weight": 1}


def test_the_model_and_the_random_generator_are_left_alone():
    model = ResNet().train()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    derive_spec(model, (torch.zeros(2, 3, 8, 8),))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_equal_calls_give_equal_specs():
    x = torch.zeros(2, 3, 8, 8)
    assert derive_spec(ResNet(), (x,)) == derive_spec(ResNet(), (x,))


@settings(max_examples=5, deadline=None)
@given(growth=st.tuples(st.integers(0, 3), st.integers(0, 3)), data=st.data())
def test_a_grown_state_dict_loads_and_computes_the_same(growth, data):
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5),
        nn.ReLU(), nn.Linear(5, 2),
    ).eval()  # fmt: skip
    x = torch.randn(2, 1, 5, 5)
    spec = sequential_spec(model)
    widths = {g: n + more for (g, n), more in zip(spec.sizes.items(), growth, strict=True)}
    places = {
        group: torch.tensor(data.draw(st.permutations(range(width)))[: spec.sizes[group]])
        for group, width in widths.items()
    }
    state = spec.expand(model.state_dict(), places, widths)
    wide = resize(copy.deepcopy(model), state)
    wide.load_state_dict(state)
    torch.testing.assert_close(wide(x), model(x))
    assert wide[1].num_features == widths["0."]


def test_frozen_and_tied_parameters():
    model = mlp(lambda n, x: n.d(n.c(x).relu()), c=nn.Linear(8, 8), d=nn.Linear(8, 8))
    model.d.weight = model.c.weight
    model.a.requires_grad_(False)
    spec = derive_spec(model, (VECTOR,))
    assert spec.describe("c.weight") == spec.describe("d.weight") == "a, a"


def test_a_module_used_twice():
    model = mlp(lambda n, x: n.c(n.c(x).relu()), c=nn.Linear(8, 8))
    assert derive_spec(model, (VECTOR,)).describe("c.weight") == "a, a"


def test_several_outputs_and_inputs():
    model = Net(
        lambda n, x, y: {"one": n.b(h := n.a(x) + n.c(y)), "two": n.d(h)},
        a=nn.Linear(6, 8), b=nn.Linear(8, 3), c=nn.Linear(5, 8), d=nn.Linear(8, 2),
    )  # fmt: skip
    spec = derive_spec(model, (VECTOR, torch.zeros(4, 5)))
    assert spec.describe("c.weight") == "a, 5"
    assert set(spec.head) == {"b.weight", "b.bias", "d.weight", "d.bias"}


def test_a_batch_of_one_in_a_batch_norm():
    model = mlp(lambda n, x: n.bn(x), bn=nn.BatchNorm1d(8))
    assert derive_spec(model, (torch.zeros(1, 6),)).describe("bn.weight") == "a"


def test_groups_that_only_training_uses_are_proven_in_training():
    def branches(net, x):
        x = net.bn(net.a(x)).relu()
        return (net.b(x), net.d(net.c(x).relu())) if net.training else net.b(x)

    model = Net(
        branches, a=nn.Linear(6, 8), bn=nn.BatchNorm1d(8), b=nn.Linear(8, 3),
        c=nn.Linear(8, 5), d=nn.Linear(5, 3),
    )  # fmt: skip
    spec = derive_spec(model, (VECTOR,))
    assert list(spec.groups) == ["a", "c"]
    assert spec.describe("d.weight") == "3, c"


def norm_by_own_buffers(net, x):
    x = net.bn(net.a(x))
    x = fn.batch_norm(x, net.level, net.spread, training=net.training)
    return net.b(x.relu() - net.other)


def test_which_variance_belongs_to_which_mean_is_read_from_the_operators():
    # Named against the convention, and in another order than they are read in.
    model = Net(
        norm_by_own_buffers, a=nn.Linear(6, 8), bn=nn.BatchNorm1d(8), b=nn.Linear(8, 3),
        other=torch.zeros(8), spread=torch.ones(8), level=torch.zeros(8),
    )  # fmt: skip
    spec = derive_spec(model, (VECTOR,))
    assert spec.variances == {"spread": "level", "bn.running_var": "bn.running_mean"}
    assert set(spec.statistics) == {*spec.variances, *spec.variances.values(), "other"}
    assert prove_spec(spec, model, (VECTOR,)).spec.variances == spec.variances


def test_a_norm_that_is_written_out_has_torch_s_names_by_default():
    model = convnet(lambda n, x: n.bn(x).relu(), bn=FrozenBatchNorm2d(8))
    spec = derive_spec(model, (torch.zeros(2, 2, 6, 6),))
    assert spec.variances == {"bn.running_var": "bn.running_mean"}


def test_a_norm_with_two_names_has_a_mean_under_either():
    norm = nn.BatchNorm1d(8)
    model = mlp(lambda n, x: n.two(n.c(n.one(x))), one=norm, two=norm, c=nn.Linear(8, 8))
    spec = derive_spec(model, (VECTOR,))
    assert spec.variances == {f"{n}.running_var": f"{n}.running_mean" for n in ("one", "two")}
    assert "variances" not in spec.to_json()


def test_a_group_that_is_dropped_takes_its_variances_along():
    model = Net(
        lambda n, x: n.b(n.a(x).relu()) + 0 * fn.batch_norm(n.c(x), n.level, n.spread).sum(),
        a=nn.Linear(6, 8), b=nn.Linear(8, 3), c=nn.Linear(6, 5),
        level=torch.zeros(5), spread=torch.ones(5),
    )  # fmt: skip
    spec = derive_spec(model, (VECTOR,))
    assert spec.describe("spread") == "5"
    assert spec.statistics == ()
    assert spec.variances == {}
