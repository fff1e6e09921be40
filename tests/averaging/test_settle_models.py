"""Whole models settled in one shot: a slow reference, and what must not matter."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedma_flwr.averaging import ClientUpdate, settle_stage
from fedma_flwr.matching import BBPMAP, IdentityMatching
from fedma_flwr.structure import PermutationSpec, StagePlan, resize, sequential_spec


def make_net(seed, hidden=(6, 5)):
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(1, hidden[0], 3), nn.ReLU(), nn.Flatten(), nn.Linear(hidden[0] * 4, hidden[1])
    )
    net.append(nn.ReLU())
    net.append(nn.Linear(hidden[1], 3))
    return net.double()


NET_SPEC = sequential_spec(make_net(0))


def one_shot(models, matcher, groups_per_stage=1):
    """Matched averaging without retraining; what clients do between stages is done here."""
    plan = StagePlan.build(NET_SPEC, groups_per_stage)
    clients = [dict(model) for model in models]
    result, matched = {}, frozenset()
    for stage in plan.stages:
        updates = [ClientUpdate({n: c[n] for n in stage.uploads}, 1.0) for c in clients]
        outcome = settle_stage(
            NET_SPEC,
            stage,
            updates,
            matched=matched,
            matcher=matcher,
            max_widths=dict.fromkeys(NET_SPEC.groups, 100),
        )
        result.update(outcome.tensors)
        matched |= outcome.widths.keys()
        for client, assignments in zip(clients, outcome.assignments, strict=True):
            rest = {n: t for n, t in client.items() if n not in result}
            client.update(NET_SPEC.expand(rest, assignments, outcome.widths))
    return result


def function_of(state_dict):
    net = resize(make_net(0), state_dict)
    net.load_state_dict(state_dict)
    x = torch.linspace(-1, 1, 5 * 16, dtype=torch.float64).reshape(5, 1, 4, 4)
    return net(x).detach()


def random_permutations(seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randperm(group.size, generator=generator)
        for name, group in NET_SPEC.groups.items()
    }


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), per_stage=st.sampled_from([1, 2, "all"]))
def test_permuting_every_client_changes_nothing_but_the_order_of_units(seed, per_stage):
    base = make_net(seed).state_dict()
    generator = torch.Generator().manual_seed(seed)
    models = [
        {n: t + 0.01 * torch.randn(t.shape, generator=generator).double() for n, t in base.items()}
        for _ in range(3)
    ]
    shuffled = [
        NET_SPEC.permute(model, random_permutations(seed + i)) for i, model in enumerate(models)
    ]
    first = one_shot(models, BBPMAP(), per_stage)
    second = one_shot(shuffled, BBPMAP(), per_stage)
    assert {n: t.shape for n, t in first.items()} == {n: t.shape for n, t in second.items()}
    torch.testing.assert_close(function_of(first), function_of(second), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("matcher", [BBPMAP(), IdentityMatching()], ids=["bbpmap", "identity"])
@pytest.mark.parametrize("per_stage", [1, "all"])
def test_identical_clients_give_back_the_same_model(matcher, per_stage):
    model = make_net(3).state_dict()
    result = one_shot([model] * 4, matcher, per_stage)
    permuted = [NET_SPEC.permute(model, random_permutations(i)) for i in range(4)]
    for name, tensor in model.items():
        assert torch.equal(result[name], tensor), name
    if isinstance(matcher, BBPMAP):
        again = one_shot(permuted, matcher, per_stage)
        torch.testing.assert_close(function_of(again), function_of(model), rtol=1e-12, atol=1e-12)


def slow_mean(spec, name, updates, assignments, widths):
    """Entry by entry, from the definition: the mean over the clients that hold all its units."""
    shape = spec.shapes(widths)[name]
    result = np.zeros(shape)
    for index in np.ndindex(*shape):
        values = []
        for update, units in zip(updates, assignments, strict=True):
            local = []
            for axis, position in zip(spec.axes[name], index, strict=True):
                own = axis.positions(
                    {g: units[g] for g in axis.groups}, {g: widths[g] for g in axis.groups}
                )
                local.append((own == position).nonzero().flatten().tolist())
            if all(local):
                values.append(float(update.tensors[name][tuple(place[0] for place in local)]))
        result[index] = np.mean(values) if values else 0.0
    return result


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    clients=st.integers(1, 4),
    widths=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
def test_average_agrees_with_the_definition(seed, clients, widths):
    spec = PermutationSpec(
        groups={"g": widths[0], "h": widths[1]},
        axes={"ih": "g + g, 2", "hh": "g + g, g", "next": "h, g x 2", "out": "1, h"},
    )
    rng = np.random.default_rng(seed)
    shapes = spec.shapes()
    updates = [
        ClientUpdate({n: torch.tensor(rng.normal(size=shapes[n])) for n in ("ih", "hh", "next")}, 1)
        for _ in range(clients)
    ]
    outcome = settle_stage(
        spec,
        StagePlan.build(spec, "all")[0],
        updates,
        matched=frozenset(),
        matcher=BBPMAP.reference(output="mean"),
        max_widths={"g": 100, "h": 100},
    )
    for name in ("ih", "hh", "next"):
        slow = slow_mean(spec, name, updates, outcome.assignments, outcome.widths)
        np.testing.assert_allclose(outcome.tensors[name].numpy(), slow, atol=1e-12)
