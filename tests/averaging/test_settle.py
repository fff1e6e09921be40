"""The server's arithmetic: hand-computed cases, a slow reference, and what must not matter."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedma_flwr.averaging import Averaging, ClientUpdate, RoundStart, settle_stage
from fedma_flwr.matching import BBPMAP, IdentityMatching, Matching
from fedma_flwr.server.settings import max_width
from fedma_flwr.structure import PermutationSpec, StagePlan, resize, sequential_spec

SPEC = PermutationSpec(
    groups={"h": 2}, axes={"a.weight": "h, 1", "a.bias": "h", "b.weight": "2, h", "b.bias": "2"}
)


def tensors(**values):
    return {name.replace("_", "."): torch.tensor(value) for name, value in values.items()}


def fixed(*assignments, width):
    """A matcher that returns these assignments, whatever the units."""

    class Fixed:
        output = "mean"

        def match(self, units, *, weights=None, max_width=None, seed=0):
            arrays = tuple(np.array(a) for a in assignments)
            popularity = np.bincount(np.concatenate(arrays), minlength=width)
            return Matching(arrays, np.zeros((width, units[0].shape[1])), popularity, 0.0, 0)

    return Fixed()


def settle(spec, updates, matcher, stage=0, matched=(), **options):
    plan = StagePlan.build(spec)
    return settle_stage(
        spec,
        plan[stage],
        updates,
        matched=frozenset(matched),
        matcher=matcher,
        max_widths=dict.fromkeys(spec.groups, 100),
        **options,
    )


def test_matched_units_are_averaged_over_their_holders():
    updates = [
        ClientUpdate(tensors(a_weight=[[1.0], [2.0]], a_bias=[10.0, 20.0]), 1.0),
        ClientUpdate(tensors(a_weight=[[4.0], [3.0]], a_bias=[40.0, 30.0]), 3.0),
    ]
    matcher = fixed([0, 1], [1, 2], width=3)
    outcome = settle(SPEC, updates, matcher)
    assert outcome.widths == {"h": 3}
    assert outcome.tensors["a.weight"].tolist() == [[1.0], [3.0], [3.0]]
    assert outcome.tensors["a.bias"].tolist() == [10.0, 30.0, 30.0]
    weighted = settle(SPEC, updates, matcher, weighted=True)
    assert weighted.tensors["a.bias"].tolist() == [10.0, 35.0, 30.0]  # (20 + 3 * 40) / 4


def test_recurrent_weights_are_averaged_over_holders_of_the_pair():
    spec = PermutationSpec(groups={"h": 2}, axes={"ih": "h, 1", "hh": "h, h", "out": "1, h"})
    updates = [
        ClientUpdate({"ih": torch.ones(2, 1), "hh": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}, 1),
        ClientUpdate({"ih": torch.ones(2, 1), "hh": torch.tensor([[5.0, 6.0], [7.0, 8.0]])}, 1),
    ]
    outcome = settle(spec, updates, fixed([0, 1], [1, 2], width=3))
    expected = [[1.0, 2.0, 0.0], [3.0, (4.0 + 5.0) / 2, 6.0], [0.0, 7.0, 8.0]]
    assert outcome.tensors["hh"].tolist() == expected


def test_head_is_averaged_by_class_counts():
    heads = [
        {"b.weight": torch.full((2, 2), value), "b.bias": torch.full((2,), value)}
        for value in (1.0, 5.0)
    ]
    counts = [torch.tensor([3.0, 0.0]), torch.tensor([1.0, 0.0])]
    updates = [
        ClientUpdate(head, examples, count)
        for head, examples, count in zip(heads, (1.0, 3.0), counts, strict=True)
    ]
    outcome = settle(SPEC, updates, BBPMAP(), stage=1, matched={"h"})
    assert outcome.head_by_class
    # class 0: 3/4 * 1 + 1/4 * 5 = 2; class 1: nobody has it, plain mean 3
    assert outcome.tensors["b.weight"].tolist() == [[2.0, 2.0], [3.0, 3.0]]
    assert outcome.tensors["b.bias"].tolist() == [2.0, 3.0]


@pytest.mark.parametrize("counts", [None, torch.ones(3)])
def test_head_without_fitting_class_counts_is_averaged_by_examples(counts):
    heads = [{"b.weight": torch.full((2, 2), v), "b.bias": torch.full((2,), v)} for v in (1.0, 5.0)]
    updates = [
        ClientUpdate(heads[0], 1.0, torch.ones(2)),
        ClientUpdate(heads[1], 3.0, counts),
    ]
    outcome = settle(SPEC, updates, BBPMAP(), stage=1, matched={"h"})
    assert not outcome.head_by_class
    assert outcome.tensors["b.bias"].tolist() == [4.0, 4.0]


def test_integer_buffers_and_posterior_output():
    spec = PermutationSpec(
        groups={"h": 2}, axes={"w": "h, 1", "n": "", "out": "1, h"}, head=["out", "n"]
    )
    updates = [ClientUpdate({"out": torch.zeros(1, 2), "n": torch.tensor(n)}, 1.0) for n in (3, 4)]
    outcome = settle(spec, updates, BBPMAP(), stage=1, matched={"h"})
    assert outcome.tensors["n"].dtype == torch.int64
    units = torch.tensor([[3.0], [-6.0]])
    updates = [ClientUpdate({"w": units}, 1.0) for _ in range(2)]
    posterior = settle(spec, updates, BBPMAP.reference(gamma=1e-6))
    # sum / (n + 1) of two equal units
    assert sorted(posterior.tensors["w"].flatten().tolist()) == pytest.approx([-4.0, 2.0])


PAIRED = PermutationSpec(
    groups={"g": 1, "h": 1},
    axes={"in": "g, 1", "mid": "h, 1", "pair.running_var": "g, h", "pair.mean": "g, h"},
    statistics=["pair.running_var", "pair.mean"],
    head=[],
    variances={"pair.running_var": "pair.mean"},
)


def test_where_nobody_holds_a_pair_a_variance_is_one_and_all_else_nothing():
    """Each client's units become global units of their own: no client holds the pairs between."""

    class Apart:
        output = "mean"

        def match(self, units, *, weights=None, max_width=None, seed=0):
            own = (np.array([0]), np.array([1]))
            return Matching(own, np.concatenate(units), np.array([1, 1]), 0.0, 0)

    updates = [
        ClientUpdate(
            {
                "in": torch.ones(1, 1),
                "mid": torch.ones(1, 1),
                "pair.running_var": torch.tensor([[variance]]),
                "pair.mean": torch.tensor([[mean]]),
            },
            1.0,
        )
        for variance, mean in ((3.0, 2.0), (5.0, -4.0))
    ]
    plan = StagePlan.build(PAIRED, "all", reestimate_statistics=False)
    outcome = settle_stage(
        PAIRED,
        plan[0],
        updates,
        matched=frozenset(),
        matcher=Apart(),
        max_widths={"g": 2, "h": 2},
    )
    assert outcome.tensors["pair.running_var"].tolist() == [[3.0, 1.0], [1.0, 5.0]]
    assert outcome.tensors["pair.mean"].tolist() == [[2.0, 0.0], [0.0, -4.0]]


class Posterior:
    """Puts unit i of all clients together, and says what the posterior mean is: 7, 8, 9..."""

    output = "posterior"

    def match(self, units, *, weights=None, max_width=None, seed=0):
        same = tuple(np.arange(len(rows)) for rows in units)
        found = 7.0 + np.arange(units[0].size).reshape(units[0].shape)
        return Matching(same, found, np.full(len(units[0]), len(units)), 0.0, 0)


def test_posterior_means_take_the_place_of_averages():
    tensors_of = [tensors(a_weight=[[1.0], [2.0]], a_bias=[v, v]) for v in (1.0, 3.0)]
    updates = [ClientUpdate(each, 1.0) for each in tensors_of]
    found = settle(SPEC, updates, Posterior()).tensors
    # A unit's row is its weight, then its bias.
    assert found["a.weight"].tolist() == [[7.0], [9.0]]
    assert found["a.bias"].tolist() == [8.0, 10.0]
    assert found["a.bias"].dtype == torch.float32
    averaging = fixed([0, 1], [0, 1], width=2)
    assert settle(SPEC, updates, averaging).tensors["a.bias"].tolist() == [2.0, 2.0]


def test_posterior_means_wait_until_all_tensors_of_a_unit_settle():
    """A row is whole or not: of a unit whose bias settles later, the average is what counts."""
    stage = StagePlan.build(SPEC)[0]
    later = replace(stage, settles=("a.weight",))
    updates = [ClientUpdate(tensors(a_weight=[[1.0], [2.0]], a_bias=[v, v]), 1.0) for v in (1, 3.0)]
    outcome = settle_stage(
        SPEC,
        later,
        updates,
        matched=frozenset(),
        matcher=Posterior(),
        max_widths={"h": 10},
    )
    assert outcome.tensors.keys() == {"a.weight"}
    assert outcome.tensors["a.weight"].tolist() == [[1.0], [2.0]]


def test_a_matcher_is_told_what_it_needs():
    """One seed a group, weights only where units are weighted, and the cap of each group."""
    told = []

    class Told(IdentityMatching):
        def match(self, units, *, weights=None, max_width=None, seed=0):
            told.append((weights, max_width, seed, [rows.shape for rows in units]))
            return super().match(units)

    spec = PermutationSpec({"g": 2, "h": 3}, {"a": "g, 1", "b": "h, g", "c": "2, h"})
    updates = [
        ClientUpdate({"a": torch.ones(2, 1), "b": torch.ones(3, 2)}, examples)
        for examples in (2.0, 5.0)
    ]

    def settle_both(**options):
        told.clear()
        settle_stage(
            spec,
            StagePlan.build(spec, "all")[0],
            updates,
            matched=frozenset(),
            matcher=Told(),
            max_widths={"g": 4, "h": 6},
            **{"seed": 40, **options},
        )
        return [entry[:3] for entry in told]

    assert settle_both() == [(None, 4, 40), (None, 6, 41)]
    assert settle_both(weighted=True) == [([2.0, 5.0], 4, 40), ([2.0, 5.0], 6, 41)]
    assert told[1][3] == [(3, 2), (3, 2)]
    assert settle_both(saved={"g": IdentityMatching()}) == [(None, 6, 41)]


def test_what_has_no_matched_unit_is_averaged_by_examples():
    """Units count equally unless told otherwise; a tensor of its own weighs as its client does."""
    spec = PermutationSpec(
        groups={"h": 1}, axes={"scale": "1", "w": "h, 1", "out": "1, h"}, head=["out"]
    )
    updates = [
        ClientUpdate({"w": torch.tensor([[v]]), "scale": torch.tensor([v])}, examples)
        for v, examples in ((1.0, 1.0), (5.0, 3.0))
    ]
    found = settle(spec, updates, IdentityMatching()).tensors
    assert (found["w"].tolist(), found["scale"].tolist()) == ([[3.0]], [4.0])


def test_a_head_whose_units_are_matched_with_it_goes_by_class_and_counts_who_lacks_a_unit():
    """One shot: what a unit adds to an output is averaged over all clients, with and without it."""
    updates = [
        ClientUpdate(
            tensors(a_weight=[[1.0], [1.0]], a_bias=[0.0, 0.0], b_weight=weight, b_bias=[0.0, 0.0]),
            1.0,
            torch.tensor(counts),
        )
        for weight, counts in (([[1.0, 2.0]] * 2, [1.0, 3.0]), ([[4.0, 8.0]] * 2, [1.0, 1.0]))
    ]
    outcome = settle_stage(
        SPEC,
        StagePlan.one_shot(SPEC)[0],
        updates,
        matched=frozenset(),
        matcher=fixed([0, 1], [1, 2], width=3),
        max_widths={"h": 4},
    )
    assert outcome.head_by_class
    assert outcome.tensors["b.weight"].tolist() == [[0.5, 3.0, 4.0], [0.75, 2.5, 2.0]]


def test_only_weights_are_scaled_down_for_a_robust_average():
    """Usual is 14, which 18 becomes. Running statistics and integers may differ as they like.

    What is left of the weights is 14 three times, so that 12 and 13 are far from the median.
    """
    spec = PermutationSpec(
        groups={"h": 1},
        axes={"w": "h, 1", "n.running_mean": "h", "n": "1", "out": "1, h"},
        statistics=["n.running_mean"],
        head=["out"],
    )
    updates = [
        ClientUpdate(
            {
                "w": torch.tensor([[v]]),
                "n.running_mean": torch.tensor([v]),
                "n": torch.tensor([int(v)]),
            },
            1.0,
        )
        for v in (12.0, 13.0, 14.0, 18.0, 18.0)
    ]
    outcome = settle_stage(
        spec,
        StagePlan.build(spec, reestimate_statistics=False)[0],
        updates,
        matched=frozenset(),
        matcher=IdentityMatching(),
        max_widths={"h": 1},
        averaging=Averaging("trimmed_mean", 0.0),
    )
    found = outcome.tensors
    assert (found["n.running_mean"].item(), found["n"].item()) == (15.0, 15)
    assert found["w"].item() == 14.0


def test_seed_and_rate_have_defaults():
    seeds = []

    class Noting(IdentityMatching):
        def match(self, units, *, weights=None, max_width=None, seed=0):
            seeds.append(seed)
            return super().match(units)

    updates = [ClientUpdate(tensors(a_weight=[[1.0], [2.0]], a_bias=[8.0, 9.0]), 1.0)]
    past = tensors(a_weight=[[0.0], [0.0]], a_bias=[0.0, 0.0])
    start = RoundStart(past, [{"h": torch.arange(2)}], [{}], {})
    assert settle(SPEC, updates, Noting(), start=start).tensors["a.bias"].tolist() == [8.0, 9.0]
    assert seeds == [0]


def test_integers_are_rounded_not_cut_off():
    spec = PermutationSpec(
        groups={"h": 2}, axes={"w": "h, 1", "n": "", "out": "1, h"}, head=["out"]
    )
    updates = [ClientUpdate({"w": torch.ones(2, 1), "n": torch.tensor(n)}, 1.0) for n in (3, 4, 4)]
    outcome = settle(spec, updates, IdentityMatching())
    assert outcome.tensors["n"].tolist() == 4  # of 3.67


def test_max_width():
    assert max_width(20, True, 1.5) == 30
    assert max_width(20, False, 1.5) == 20
    assert max_width(3, True, 1.0) == 3
    assert max_width(10, True, 1.1) == 11  # 10 * 1.1 is 11.000000000000002
    assert max_width(100, True, 1.15) == 115  # and 100 * 1.15 is 114.99999999999999
    assert max_width(10, True, 1.19) == 11


# ---------------------------------------------------------------- whole models, one shot


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
