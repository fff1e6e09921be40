"""Statistics of a batch norm: the stage in which they settle, and how moments are pooled."""

import pytest
import torch
from torch import nn

from fedma_flwr.averaging import ClientUpdate, settle_stage
from fedma_flwr.client_statistics import estimate_statistics
from fedma_flwr.matching import IdentityMatching
from fedma_flwr.structure import PermutationSpec, StagePlan
from tests.server.normed import SPEC, STATISTICS

# ---------------------------------------------------------------- stages


def test_statistics_settle_one_stage_after_what_feeds_them():
    plan = StagePlan.build(SPEC)
    assert [stage.settles for stage in plan.stages] == [
        ("a.weight", "na.weight", "na.bias"),
        (*STATISTICS[:2], "na.num_batches_tracked", "b.weight", "nb.weight", "nb.bias"),
        (*STATISTICS[2:], "nb.num_batches_tracked"),
        ("c.weight", "c.bias"),
    ]
    assert [stage.estimates for stage in plan.stages] == [(), STATISTICS[:2], STATISTICS[2:], ()]
    assert [stage.name for stage in plan.stages] == ["local", "retrain", "retrain", "head"]
    kept = StagePlan.build(SPEC, reestimate_statistics=False)
    assert {*STATISTICS[:2], "na.num_batches_tracked", "a.weight"} <= set(kept[0].settles)
    assert {*STATISTICS[2:], "nb.num_batches_tracked", "b.weight"} <= set(kept[1].settles)
    assert all(stage.estimates == () for stage in kept.stages)


BLOCK = PermutationSpec(  # a residual block: `back` adds to the stem's stream
    groups={"stem": 4, "inner": 6},
    axes={
        "stem.weight": "stem, 3",
        "n0.running_mean": "stem",
        "inner.weight": "inner, stem",
        "n1.running_mean": "inner",
        "back.weight": "stem, inner",
        "n2.running_mean": "stem",
        "n2.num_batches_tracked": "",
        "head.weight": "2, stem",
    },
    statistics=["n0.running_mean", "n1.running_mean", "n2.running_mean"],
    head=["head.weight"],
)


def test_the_last_statistics_of_a_residual_network_settle_before_its_head():
    plan = StagePlan.build(BLOCK)
    assert [(stage.name, stage.settles) for stage in plan.stages] == [
        ("local", ("stem.weight",)),
        ("retrain", ("n0.running_mean", "inner.weight")),
        ("retrain", ("n1.running_mean", "back.weight")),
        ("retrain", ("n2.running_mean", "n2.num_batches_tracked")),
        ("head", ("head.weight",)),
    ]
    kept = StagePlan.build(BLOCK, reestimate_statistics=False)
    assert [stage.settles for stage in kept.stages] == [
        ("stem.weight", "n0.running_mean"),
        ("inner.weight", "n1.running_mean"),
        ("back.weight", "n2.running_mean", "n2.num_batches_tracked", "head.weight"),
    ]
    assert [len(StagePlan.build(BLOCK, count)) for count in (1, 2, "all")] == [5, 3, 3]


# ---------------------------------------------------------------- moments


@pytest.mark.parametrize("shape", [(7, 3), (7, 3, 4), (7, 3, 4, 2)])
def test_the_hook_finds_the_moments_of_everything_seen_in_training(shape):
    layer = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)](3)
    plain = type(layer)(3)
    estimate_statistics(nn.ModuleDict({"n": layer}), ["n.running_mean"])
    batches = [5.0 + torch.randn(size, *shape[1:]) * (size + 1) for size in (shape[0], 2, 5)]
    for batch in batches:
        assert torch.equal(layer(input=batch), plain(batch))  # the output does not change
    layer.eval()(100 + batches[0])  # validation does not count
    seen = torch.cat([batch.transpose(0, 1).flatten(1) for batch in batches], 1)
    torch.testing.assert_close(layer.running_mean, seen.mean(1))
    torch.testing.assert_close(layer.running_var, seen.var(1))


def test_pooled_variances_include_what_the_means_differ():
    spec = PermutationSpec(
        {"h": 1},
        {"w": "h, 1", "n.running_mean": "h", "n.running_var": "h"},
        statistics=["n.running_mean", "n.running_var"],
    )
    updates = [
        ClientUpdate(
            {
                "w": torch.ones(1, 1),
                "n.running_mean": torch.tensor([mean]),
                "n.running_var": torch.tensor([variance]),
            },
            examples,
        )
        for mean, variance, examples in ((0.0, 2.0, 1.0), (4.0, 6.0, 3.0))
    ]

    def settle(stage, matched, plan, **options):
        outcome = settle_stage(
            spec,
            plan[stage],
            updates,
            matched=frozenset(matched),
            matcher=IdentityMatching(),
            max_widths={"h": 1},
            **options,
        )
        return [outcome.tensors[name].item() for name in spec.statistics]

    # by examples: mean 3, variance (2 + 3 * 6) / 4 + (1 * 9 + 3 * 1) / 4
    assert settle(1, {"h"}, StagePlan.build(spec)) == [3.0, 5.0 + 3.0]
    kept = StagePlan.build(spec, reestimate_statistics=False)
    assert settle(0, (), kept) == [2.0, 4.0 + 4.0]  # equally, as other units are
    assert settle(0, (), kept, weighted=True) == [3.0, 8.0]
