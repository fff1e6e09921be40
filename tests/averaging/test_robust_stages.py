"""Robust averages of a whole stage: matched units, head and statistics."""

import torch

from fedma_flwr.averaging import Averaging, ClientUpdate, settle_stage
from fedma_flwr.matching import IdentityMatching
from fedma_flwr.structure import PermutationSpec, StagePlan

SPEC = PermutationSpec(
    groups={"h": 2}, axes={"a.weight": "h, 1", "a.bias": "h", "b.weight": "2, h", "b.bias": "2"}
)
MEDIAN = Averaging("median")


def update(value, examples=1.0, counts=None):
    tensors = {
        "a.weight": torch.full((2, 1), value),
        "a.bias": torch.full((2,), value),
        "b.weight": torch.full((2, 2), value),
        "b.bias": torch.full((2,), value),
    }
    return ClientUpdate(tensors, examples, None if counts is None else torch.tensor(counts))


def settle(updates, stage, averaging, matched=()):
    return settle_stage(
        SPEC,
        StagePlan.build(SPEC)[stage],
        updates,
        matched=frozenset(matched),
        matcher=IdentityMatching(),
        max_widths={"h": 10},
        averaging=averaging,
    ).tensors


def test_matched_units_and_head_are_averaged_robustly():
    updates = [update(v, counts=[2.0, 1.0]) for v in (1.0, 2.0, 500.0)]
    assert settle(updates, 0, MEDIAN)["a.weight"].tolist() == [[2.0], [2.0]]
    assert settle(updates, 1, MEDIAN, ["h"])["b.bias"].tolist() == [2.0, 2.0]


def test_the_heads_median_is_weighted_by_class_counts():
    counts = ([5.0, 0.0], [4.0, 0.0], [0.0, 3.0])
    updates = [update(v, counts=c) for v, c in zip((2.0, 2.0, -2.0), counts, strict=True)]
    assert settle(updates, 1, MEDIAN, ["h"])["b.bias"].tolist() == [2.0, -2.0]


def test_a_head_without_class_counts_is_weighted_by_examples():
    updates = [update(v, examples=e) for v, e in ((1.0, 5.0), (2.0, 1.0), (3.0, 1.0))]
    assert settle(updates, 1, MEDIAN, ["h"])["b.bias"].tolist() == [1.0, 1.0]


def test_variances_of_robust_statistics_are_not_negative():
    """The median of second moments is never below the square of the means' median."""
    axes = {"w": "h, 1", "n.running_mean": "h", "n.running_var": "h", "out": "1, h"}
    spec = PermutationSpec(
        groups={"h": 4}, axes=axes, statistics=["n.running_mean", "n.running_var"]
    )
    generator = torch.Generator().manual_seed(0)
    updates = [
        ClientUpdate(
            {
                "w": torch.ones(4, 1),
                "n.running_mean": 10 * torch.randn(4, generator=generator),
                "n.running_var": torch.rand(4, generator=generator),
            },
            1.0,
        )
        for _ in range(6)
    ]
    outcome = settle_stage(
        spec,
        StagePlan.build(spec, reestimate_statistics=False)[0],
        updates,
        matched=frozenset(),
        matcher=IdentityMatching(),
        max_widths={"h": 4},
        averaging=MEDIAN,
    )
    assert bool((outcome.tensors["n.running_var"] > 0).all())
