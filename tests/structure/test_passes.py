"""How many passes a proof takes: they are most of what deriving costs."""

import pytest
import torch
from torch import nn

from fedma_flwr.structure import PermutationSpec, derive_spec, prove_spec
from fedma_flwr.structure.proving.model_in_proof import ModelInProof
from fedma_flwr.structure.proving.sensitivity import all_pairs, sensitive_pairs
from tests.structure.networks import LSTM, LeNet, Net, ResNet, derived, mlp, tokens

# By network the most passes that its proof may take, forward, or forward and backward.
MODELS = {
    "lenet": (LeNet(), (torch.zeros(2, 1, 28, 28),), 36),
    "residual": (ResNet(2, widths=(4, 4, 6)), (torch.zeros(2, 2, 8, 8),), 45),
    "lstm": (LSTM(), (tokens(80, 2, 5),), 24),
    "transformer": (*derived("transformer")[:2], 45),
}


@pytest.fixture
def passes(monkeypatch):
    """Every pass of any model in proof."""
    seen = []
    run = ModelInProof.run
    monkeypatch.setattr(ModelInProof, "run", lambda self: seen.append(self) or run(self))
    return seen


@pytest.mark.parametrize("name", MODELS)
def test_a_proof_takes_few_passes(name, passes):
    model, inputs, most = MODELS[name]
    spec = derive_spec(model, inputs if isinstance(inputs, tuple) else (inputs,))
    assert spec.groups
    assert 10 < len(passes) <= most


def test_what_training_mode_does_alike_is_not_tried_twice(passes):
    model = mlp(lambda n, x: x.relu())
    derive_spec(model, (torch.zeros(4, 6),))
    alike = len(passes)
    model = mlp(lambda n, x: n.norm(x).relu(), norm=nn.BatchNorm1d(8))
    derive_spec(model, (torch.zeros(4, 6),))
    assert sum(model.training for model in passes[:alike]) <= sum(
        model.training for model in passes[alike:]
    )
    assert len(passes) - alike > alike


def pairs_of(model, groups, axes, passes):
    in_proof = ModelInProof(PermutationSpec(groups, axes), model, (torch.ones(4, 6),))
    before = {name: tensor.clone() for name, tensor in in_proof.tensors.items()}
    passes.clear()
    found = sensitive_pairs(in_proof, all_pairs(in_proof), torch.Generator().manual_seed(0))
    for name, tensor in in_proof.tensors.items():
        assert torch.equal(tensor, before[name])  # whatever was tried is undone
    return found


def test_many_pairs_are_told_apart_in_a_few_passes(passes):
    layers = {f"l{number}": nn.Linear(8, 8) for number in range(12)}

    def run(net, x):
        for name in layers:
            x = getattr(net, name)(x).tanh()
        return x

    model = mlp(run, **layers)
    axes = {"a.weight": "g, 6", "a.bias": "g"}
    last = "g"
    for name in layers:
        axes |= {f"{name}.weight": f"{name}, {last}", f"{name}.bias": name}
        last = name
    axes |= {"b.weight": f"3, {last}", "b.bias": "3"}
    groups = dict.fromkeys(["g", *layers], 8)
    assert len(pairs_of(model, groups, axes, passes)) == 39
    assert len(passes) <= 4


def test_a_symmetric_function_of_a_tensor_is_not_told_apart(passes):
    """Its derivative towards the permuted tensor is not zero: permuting it changes nothing."""
    model = mlp(
        lambda n, x: x * n.w.square().sum() * (n.v * n.u).sum(),
        **{name: nn.Parameter(torch.rand(4)) for name in "uvw"},
    )
    axes = {"a.weight": "8, 6", "a.bias": "8", "b.weight": "3, 8", "b.bias": "3"}
    axes |= dict.fromkeys("uvw", "g")
    found = pairs_of(model, {"g": 4}, axes, passes)
    assert found == {("g", "u"), ("g", "v")}


def test_what_has_no_derivative_is_tried_together_and_then_alone(passes):
    def rounded(net, x):
        return x.relu() * (net.w.round() @ net.v.round()) + net.z.round().sum()

    parts = {"w": torch.tensor([3.0, 1, 5, 9]), "v": torch.tensor([2.0, 7, 1, 4])}
    parts |= {"z": torch.tensor([1.0, 2, 3])}
    model = mlp(rounded, **{name: nn.Parameter(value) for name, value in parts.items()})
    axes = {"a.weight": "8, 6", "a.bias": "8", "b.weight": "3, 8", "b.bias": "3"}
    axes |= {"w": "g", "v": "g", "z": "h"}
    assert pairs_of(model, {"g": 4, "h": 3}, axes, passes) == {("g", "w"), ("g", "v")}


def test_a_pair_that_only_a_later_draw_shows_is_found():
    """Weights whose smallest is not negative come with the third draw only."""

    def gated(net, x):
        return x * (net.w.min() > 0) * net.w + x

    model = mlp(gated, w=nn.Parameter(-torch.rand(8)))
    axes = {"a.weight": "g, 6", "a.bias": "g", "b.weight": "3, g", "b.bias": "3", "w": "g"}
    spec = PermutationSpec({"g": 8}, axes)
    proof = prove_spec(spec, model, (torch.zeros(4, 6),))
    assert proof.inert == (("g", "w"),)  # vectors are never drawn positive: nothing was seen
    matrix = Net(
        lambda n, x: n.b(n.a(x) + (n.w.min() > 0) * (x @ n.w)),
        a=nn.Linear(6, 8),
        b=nn.Linear(8, 3),
        w=nn.Parameter(-torch.rand(6, 8)),
    )
    spec = PermutationSpec({"g": 8}, {**axes, "w": "6, g"})
    assert prove_spec(spec, matrix, (torch.zeros(4, 6),)).inert == ()
