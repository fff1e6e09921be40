"""Sensitivity: a spec that misses a single axis is refused, whichever axis it is."""

import math

import pytest
import torch
from torch import nn

from fedma_flwr.structure import PermutationSpec, SpecError, derive_spec, prove_spec
from fedma_flwr.structure.axes import AxisExpression
from fedma_flwr.structure.proving.invariance import generating_permutations
from fedma_flwr.structure.proving.model_in_proof import ModelInProof
from fedma_flwr.structure.proving.sensitivity import all_pairs, sensitive_pairs
from tests.structure.networks import Net, derived, mlp, tokens


def residual(net, x):
    x = net.norm(net.a(x)).relu()
    return net.b(x + net.d(net.c(x).relu()))


def gru(net, x):
    return net.b(net.rnn(net.a(x))[0].mean(1))


# networks in which every axis of every group is forgotten, one at a time
NETWORKS = {
    "residual": (
        Net(
            residual, a=nn.Conv2d(2, 6, 1), norm=nn.BatchNorm2d(6), c=nn.Conv2d(6, 4, 1),
            d=nn.Conv2d(4, 6, 1), b=nn.Conv2d(6, 3, 1),
        ),
        torch.zeros(2, 2, 4, 4),
    ),
    "lstm2": derived("lstm2")[:2],
    "attention": derived("attention")[:2],
    "depthwise": derived("depthwise")[:2],
    "gru": (
        Net(
            gru, a=nn.Embedding(9, 4), b=nn.Linear(12, 3),
            rnn=nn.GRU(4, 6, batch_first=True, bidirectional=True),
        ),
        tokens(9, 2, 5),
    ),
}  # fmt: skip


def fixed(axis, group, size):
    """An axis with its units taken for fixed positions."""
    return AxisExpression(
        tuple(tuple(size if factor == group else factor for factor in term) for term in axis.terms)
    )


def specs_that_miss_one_axis(spec):
    for name, axes in spec.axes.items():
        for dim, axis in enumerate(axes):
            for group in sorted(axis.groups):
                other = fixed(axis, group, spec.sizes[group])
                changed = {**spec.axes, name: (*axes[:dim], other, *axes[dim + 1 :])}
                used = {g for own in changed.values() for a in own for g in a.groups}
                groups = {g: size for g, size in spec.sizes.items() if g in used}
                yield (group, name, dim), PermutationSpec(groups, changed, spec.outputs)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_forgotten_axis_is_noticed(network):
    model, x = NETWORKS[network]
    spec = derive_spec(model, (x,))
    assert prove_spec(spec, model, (x,)).inert == ()
    accepted = []
    for where, wrong in specs_that_miss_one_axis(spec):
        try:
            prove_spec(wrong, model, (x,))
            accepted.append(where)
        except SpecError:
            pass
    assert accepted == []


def test_two_groups_taken_for_one_leave_tensors_without_effect():
    # Each layer may be permuted by itself: to permute both alike is right, but says too little.
    model = mlp(lambda n, x: n.d(n.c(x).relu()), c=nn.Linear(8, 8), d=nn.Linear(8, 8))
    x = torch.zeros(4, 6)
    spec = derive_spec(model, (x,))
    merged = {n: spec.describe(n).replace("c", "a").replace("d", "a") for n in spec.axes}
    assert prove_spec(spec, model, (x,)).inert == ()
    assert prove_spec(PermutationSpec({"a": 8}, merged), model, (x,)).inert == ()


def test_weights_behind_no_grad_are_tried_one_by_one():
    def frozen(net, x):
        with torch.no_grad():
            x = net.c(net.a(x).relu()).relu()
        return net.b(x)

    model = Net(frozen, a=nn.Linear(6, 8), c=nn.Linear(8, 5), b=nn.Linear(5, 3))
    x = (torch.zeros(4, 6),)
    spec = derive_spec(model, x)
    assert list(spec.groups) == ["a", "c"]
    assert prove_spec(spec, model, x).inert == ()


@pytest.mark.parametrize("size", [2, 3, 5])
def test_the_permutations_tried_generate_all(size):
    generator = torch.Generator().manual_seed(0)
    cycle, swap = (
        tuple(own["g"].tolist()) for own in generating_permutations({"g": size}, generator)
    )
    reached, pending = set(), [tuple(range(size))]
    while pending:
        if (last := pending.pop()) not in reached:
            reached.add(last)
            pending += [tuple(last[i] for i in step) for step in (cycle, swap)]
    assert len(reached) == math.factorial(size)


def sensitive(model, groups, axes):
    """The pairs of groups and tensors that the model's output depends on, as it is."""
    in_proof = ModelInProof(PermutationSpec(groups, axes), model, (torch.ones(4, 6),))
    generator = torch.Generator().manual_seed(0)
    return sensitive_pairs(in_proof, all_pairs(in_proof), generator)


@pytest.mark.parametrize(("weights", "pairs"), [([1, 1, 1, 1], set()), ([1, 2, 3, 4], {"w"})])
def test_a_plain_sum_does_not_depend_on_the_order_of_what_is_added(weights, pairs):
    model = mlp(lambda n, x: x * (n.w * n.v).sum(), w=nn.Parameter(torch.rand(4)))
    model.register_buffer("v", torch.tensor(weights))
    axes = {"a.weight": "8, 6", "a.bias": "8", "b.weight": "3, 8", "b.bias": "3"}
    found = sensitive(model, {"g": 4}, {**axes, "w": "g", "v": "4"})
    assert found == {("g", name) for name in pairs}


def test_each_axis_of_a_tensor_must_matter_by_itself():
    """The columns of w are added up: only the order of its rows says anything."""
    model = mlp(lambda n, x: x * n.w.sum(1), w=nn.Parameter(torch.rand(8, 8)))
    axes = {"a.weight": "g, 6", "a.bias": "g", "b.weight": "3, g", "b.bias": "3"}
    found = sensitive(model, {"g": 8}, {**axes, "w": "g, g"})
    assert found == {("g", name) for name in ("a.weight", "a.bias", "b.weight")}


def test_what_is_merely_cyclic_is_refused():
    # Three units in a ring: every cycle through them leaves the output as it is.
    model = mlp(lambda n, x: x * x.roll(1, 1), width=3, into=3)
    axes = {"a.weight": "g, 6", "a.bias": "g", "b.weight": "3, g", "b.bias": "3"}
    for seed in range(3):
        with pytest.raises(SpecError, match="'g'"):
            prove_spec(PermutationSpec({"g": 3}, axes), model, (torch.zeros(4, 6),), seed=seed)


def test_a_group_of_one_unit_is_no_obstacle():
    model = mlp(lambda n, x: x.relu(), width=1, into=1)
    axes = {"a.weight": "g, 6", "a.bias": "g", "b.weight": "3, g", "b.bias": "3"}
    assert prove_spec(PermutationSpec({"g": 1}, axes), model, (torch.zeros(4, 6),)).growable
