"""The server's arithmetic: cases that are computed by hand."""

import numpy as np
import pytest
import torch

from fedma_flwr.averaging import Averaging, ClientUpdate, settle_stage
from fedma_flwr.matching import BBPMAP, IdentityMatching, Matching
from fedma_flwr.structure import PermutationSpec, StagePlan
from tests.averaging.settling import SPEC, fixed, settle, tensors


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


def test_integers_are_rounded_not_cut_off():
    spec = PermutationSpec(
        groups={"h": 2}, axes={"w": "h, 1", "n": "", "out": "1, h"}, head=["out"]
    )
    updates = [ClientUpdate({"w": torch.ones(2, 1), "n": torch.tensor(n)}, 1.0) for n in (3, 4, 4)]
    outcome = settle(spec, updates, IdentityMatching())
    assert outcome.tensors["n"].tolist() == 4  # of 3.67
