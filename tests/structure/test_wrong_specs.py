"""Negative controls: wrong specs written by hand are refused, and the message names the culprit."""

import pytest
import torch
from torch import nn

from fedma_flwr.structure import PermutationSpec, SpecError, UnitGroup, derive_spec, prove_spec
from tests.structure.networks import Net, derived, mlp


def changed(spec, **parts):
    """The spec with other axes for some tensors, and other groups."""
    axes = {**{name: spec.describe(name) for name in spec.axes}, **parts["axes"]}
    groups = parts.get("groups", spec.groups)
    used = " ".join(axes.values()).replace(",", " ").split()
    return PermutationSpec(
        groups={name: group for name, group in groups.items() if name in used},
        axes=axes, outputs=spec.outputs, head=spec.head,
    )  # fmt: skip


# network, tensors with wrong axes, the group and the tensor that the message must name
WRONG = {
    "flatten_ignored": ("lenet", {"fc1.weight": "fc1, 800"}, "conv2", "fc1.weight"),
    "flatten_transposed": ("lenet", {"fc1.weight": "fc1, 16 x conv2"}, "conv2", "fc1.weight"),
    "channels_last": ("channels_last", {"fc.weight": "5, c x 36"}, "c", "fc.weight"),
    "bias_forgotten": ("lenet", {"conv1.bias": "20"}, "conv1", "conv1.bias"),
    "consumer_forgotten": ("lenet", {"conv2.weight": "conv2, 20, 5, 5"}, "conv1", "conv2.weight"),
    "mean_forgotten": ("resnet", {"bn.running_mean": "8"}, "conv", "bn.running_mean"),
    "variance_forgotten": (
        "resnet", {"layers.1.bn1.running_var": "16"}, "layers.1.conv1", "layers.1.bn1.running_var",
    ),
    "residual_producer_forgotten": (
        "resnet", {"layers.0.conv2.weight": "8, layers.0.conv1, 3, 3"},
        "conv", "layers.0.conv2.weight",
    ),
    "gates_interleaved": ("lstm", {"lstm.bias_ih_l0": "lstm x 4"}, "lstm", "lstm.bias_ih_l0"),
    "one_gate_forgotten": (
        "lstm", {"lstm.bias_hh_l0": "lstm + lstm + lstm + 32"}, "lstm", "lstm.bias_hh_l0",
    ),
    "recurrence_forgotten": (
        "lstm", {"lstm.weight_hh_l0": "lstm + lstm + lstm + lstm, 32"},
        "lstm", "lstm.weight_hh_l0",
    ),
    "heads_inside": (
        "attention", {"proj.weight": "inp, qkv.units3 x qkv"}, "qkv", "proj.weight",
    ),
    "rows_of_an_embedding": (
        "lstm", {"encoder.weight": "lstm + lstm + 16, encoder"}, "lstm", "encoder.weight",
    ),
    "position_forgotten": ("transformer", {"pos": "1, 6, 16"}, "emb", "pos"),
    "norm_forgotten": (
        "transformer", {"enc.layers.1.norm2.weight": "16"}, "emb", "enc.layers.1.norm2.weight",
    ),
    "depthwise_forgotten": ("depthwise", {"dw.bias": "8"}, "a", "dw.bias"),
    "transposed_forgotten": ("depthwise", {"t.bias": "6"}, "t", "t.bias"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_axis_is_refused_by_name(case):
    name, axes, group, tensor = WRONG[case]
    model, x, spec = derived(name)
    with pytest.raises(SpecError) as caught:
        prove_spec(changed(spec, axes=axes), model, (x,))
    assert f"'{group}'" in str(caught.value)
    assert f"'{tensor}'" in str(caught.value)


@pytest.mark.parametrize(
    ("axes", "groups"),
    [
        ({"fc2.weight": "classes, fc1", "fc2.bias": "classes"}, {"classes": 10}),
        ({"conv1.weight": "conv1, 1, rows, 5"}, {"rows": 5}),
        ({"fc1.bias": "fc1", "fc2.weight": "10, other"}, {"other": 500}),
    ],
    ids=["outputs", "kernel", "consumer_in_a_group_of_its_own"],
)
def test_groups_that_are_none_are_refused(axes, groups):
    model, x, spec = derived("lenet")
    wrong = changed(spec, axes=axes, groups={**spec.groups, **groups})
    with pytest.raises(SpecError, match="changes the output"):
        prove_spec(wrong, model, (x,))


def test_permuted_inputs_are_refused():
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    spec = PermutationSpec(
        {"in": 6}, {"0.weight": "4, in", "0.bias": "4", "2.weight": "2, 4", "2.bias": "2"}
    )
    with pytest.raises(SpecError, match=r"'in'.*'0\.weight'"):
        prove_spec(spec, model, (torch.zeros(2, 6),))


def test_a_group_without_effect_is_refused_by_name():
    model = mlp(lambda n, x: x.relu(), unused=nn.Linear(5, 5))
    axes = {"a.weight": "8, 6", "a.bias": "8", "b.weight": "3, 8", "b.bias": "3"}
    spec = PermutationSpec({"g": 5}, {**axes, "unused.weight": "g, 5", "unused.bias": "g"})
    with pytest.raises(SpecError, match=r"'g'.*unused\.bias"):
        prove_spec(spec, model, (torch.zeros(2, 6),))


def test_tied_parameters_with_different_axes_are_refused():
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    axes = {"0.weight": "g, 6", "0.bias": "g", "2.weight": "6, g", "2.bias": "6"}
    with pytest.raises(SpecError, match=r"'0\.weight' and '2\.weight'"):
        prove_spec(PermutationSpec({"g": 6}, axes), model, (torch.zeros(2, 6),))


def test_a_spec_of_another_model_is_refused():
    _, _, spec = derived("lenet")
    with pytest.raises(SpecError, match=r"conv1\.weight"):
        prove_spec(spec, nn.Linear(2, 2), (torch.zeros(2, 2),))


def test_a_right_spec_written_by_hand_is_derived():
    model, x, spec = derived("lenet")
    proof = prove_spec(changed(spec, axes={}), model, (x,))
    assert proof.invariance < 1e-9
    assert proof.growable == ("conv1", "conv2", "fc1")
    assert proof.inert == ()


def test_a_group_that_its_author_keeps_fixed_stays_fixed():
    model, x, spec = derived("lenet")
    kept = UnitGroup(20, growable=False, reason="so I want it")
    proof = prove_spec(changed(spec, axes={}, groups={**spec.groups, "conv1": kept}), model, (x,))
    assert proof.spec.groups["conv1"] == kept


def test_two_independent_wrong_tensors_still_name_the_group():
    model, x, spec = derived("lenet")
    wrong = changed(spec, axes={"conv1.weight": "20, 1, 5, 5", "conv1.bias": "20"})
    with pytest.raises(SpecError, match="'conv1'"):
        prove_spec(wrong, model, (x,))


def test_what_softmax_ignores_is_reported_as_inert():
    def attend(net, x):
        scores = net.q(x) @ net.k(x).transpose(1, 2)
        return net.b(scores.softmax(-1) @ x)

    model = Net(attend, q=nn.Linear(6, 4), k=nn.Linear(6, 4), b=nn.Linear(6, 2))
    spec = derive_spec(model, (torch.zeros(2, 5, 6),))
    proof = prove_spec(spec, model, (torch.zeros(2, 5, 6),))
    assert proof.inert == (("q", "k.bias"),)


def test_a_training_only_branch_that_was_forgotten_is_refused_by_name():
    def branches(net, x):
        x = net.d(net.a(x).relu())
        return (net.b(x), net.aux(x)) if net.training else net.b(x)

    parts = {"a": nn.Linear(6, 8), "b": nn.Linear(8, 3), "aux": nn.Linear(8, 2)}
    model = Net(branches, d=nn.Dropout(0.5), **parts)
    axes = {"a.weight": "g, 6", "a.bias": "g", "b.weight": "3, g", "b.bias": "3"}
    axes |= {"aux.weight": "2, 8", "aux.bias": "2"}
    with pytest.raises(SpecError, match=r"'g'.*'aux\.weight'"):
        prove_spec(PermutationSpec({"g": 8}, axes), model, (torch.zeros(4, 6),))
    right = PermutationSpec({"g": 8}, {**axes, "aux.weight": "2, g"})
    assert prove_spec(right, model, (torch.zeros(4, 6),)).inert == ()
