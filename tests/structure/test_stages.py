"""`StagePlan`: what is matched and what settles, for the kinds of networks that differ in it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedma_flwr.structure import PermutationSpec, StagePlan

LENET = PermutationSpec(
    groups={"conv1": 20, "conv2": 50, "fc1": 500},
    axes={
        "conv1.weight": "conv1, 1, 5, 5",
        "conv1.bias": "conv1",
        "conv2.weight": "conv2, conv1, 5, 5",
        "conv2.bias": "conv2",
        "fc1.weight": "fc1, conv2 x 16",
        "fc1.bias": "fc1",
        "fc2.weight": "10, fc1",
        "fc2.bias": "10",
    },
)
RESIDUAL = PermutationSpec(
    groups={"stem": 4, "inner": 6},
    axes={
        "stem.weight": "stem, 3",
        "inner.weight": "inner, stem",
        "back.weight": "stem, inner",
        "head.weight": "2, stem",
    },
)
LSTM = PermutationSpec(
    groups={"emb": 2, "h": 3},
    axes={
        "emb.weight": "5, emb",
        "lstm.weight_ih_l0": "h + h + h + h, emb",
        "lstm.weight_hh_l0": "h + h + h + h, h",
        "head.weight": "5, h",
    },
    outputs={"emb.weight": 1},
)
SPECS = [LENET, RESIDUAL, LSTM]


def settled(plan):
    return [stage.settles for stage in plan.stages]


def test_lenet_settles_layer_by_layer():
    plan = StagePlan.build(LENET)
    assert [stage.name for stage in plan.stages] == ["local", "retrain", "retrain", "head"]
    assert [stage.groups for stage in plan.stages] == [("conv1",), ("conv2",), ("fc1",), ()]
    assert settled(plan) == [
        ("conv1.weight", "conv1.bias"),
        ("conv2.weight", "conv2.bias"),
        ("fc1.weight", "fc1.bias"),
        ("fc2.weight", "fc2.bias"),
    ]
    assert plan.settled_before(1) == ("conv1.weight", "conv1.bias")


def test_bundled_stages():
    plan = StagePlan.build(LENET, groups_per_stage=2)
    assert [stage.groups for stage in plan.stages] == [("conv1", "conv2"), ("fc1",), ()]
    assert settled(plan)[0] == ("conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias")
    assert len(StagePlan.build(LENET, groups_per_stage="all")) == 2


def test_a_later_producer_of_a_residual_stream_settles_after_its_inputs():
    plan = StagePlan.build(RESIDUAL)
    assert settled(plan) == [("stem.weight",), ("inner.weight",), ("back.weight", "head.weight")]


def test_tensors_without_groups_settle_where_their_inputs_do_unless_they_are_the_head():
    spec = PermutationSpec(
        groups={"g": 3, "h": 4},
        axes={
            "temperature": "",
            "gate": "1, g",
            "a": "g, 2",
            "out": "2, h",
            "b": "h, g",
            "scale": "2",
        },
        head=["out"],
    )
    plan = StagePlan.build(spec)
    assert settled(plan) == [("temperature", "a", "scale"), ("gate", "b"), ("out",)]
    assert plan[0].uploads == ("temperature", "a", "scale")
    assert [stage.estimates for stage in plan.stages] == [(), (), ()]


AHEAD = (
    PermutationSpec(  # a norm that stands before all that makes its units, as a root's buffers do
        groups={"a": 3, "b": 4},
        axes={
            "mean": "a",
            "count": "",
            "x.weight": "a, 2",
            "y.weight": "b, a",
            "z.weight": "a, b",
            "z.scale": "",
            "out.weight": "1, a",
            "out.mean": "a",
            "out.count": "",
        },
        statistics=["mean", "out.mean"],
        head=["out.weight", "out.mean"],
    )
)


def test_statistics_with_nothing_before_them_settle_after_all_that_makes_their_units():
    plan = StagePlan.build(AHEAD)
    assert settled(plan) == [
        ("x.weight", "z.scale", "out.count"),
        ("y.weight",),
        ("z.weight",),
        ("mean", "count"),
        ("out.weight", "out.mean"),
    ]
    assert [stage.estimates for stage in plan.stages] == [(), (), (), ("mean",), ()]
    assert [stage.uploads for stage in plan.stages] == settled(plan)
    assert [stage.groups for stage in plan.stages] == [("a",), ("b",), (), (), ()]
    assert [stage.name for stage in plan.stages] == ["local", *["retrain"] * 3, "head"]
    assert [stage.index for stage in plan.stages] == [0, 1, 2, 3, 4]


def test_statistics_that_are_not_estimated_anew_settle_with_what_makes_their_units():
    plan = StagePlan.build(AHEAD, reestimate_statistics=False)
    assert settled(plan) == [
        ("x.weight", "z.scale", "out.count"),
        ("y.weight",),
        ("mean", "count", "z.weight", "out.weight", "out.mean"),
    ]
    assert [stage.estimates for stage in plan.stages] == [(), (), ()]


def test_a_head_that_is_solved_has_a_stage_of_its_own_in_which_nothing_is_sent():
    plan = StagePlan.build(RESIDUAL, solved_head=True)
    rest = [("stem.weight",), ("inner.weight",), ("back.weight",)]
    assert settled(plan) == [*rest, ("head.weight",)]
    assert [stage.uploads for stage in plan.stages] == [*rest, ()]
    assert [stage.solves_head for stage in plan.stages] == [False, False, False, True]
    assert not any(stage.solves_head for stage in StagePlan.build(RESIDUAL).stages)
    # Where all else settles early enough anyway, no stage is added.
    assert settled(StagePlan.build(AHEAD, solved_head=True)) == settled(StagePlan.build(AHEAD))
    without_groups = StagePlan.build(PermutationSpec({}, {"w": "2, 3"}), solved_head=True)
    assert [stage.solves_head for stage in without_groups.stages] == [True]


def test_a_plan_in_one_shot():
    plan = StagePlan.one_shot(AHEAD)
    (stage,) = plan.stages
    assert (stage.index, stage.name, stage.groups) == (0, "local", ("a", "b"))
    assert stage.settles == stage.uploads == tuple(AHEAD.axes)
    assert stage.estimates == ()


def test_recurrent_weights_settle_with_their_group():
    plan = StagePlan.build(LSTM)
    assert settled(plan)[1] == ("lstm.weight_ih_l0", "lstm.weight_hh_l0")
    assert plan[1].uploads == ("lstm.weight_ih_l0", "lstm.weight_hh_l0")


@given(st.sampled_from(SPECS), st.one_of(st.just("all"), st.integers(1, 5)))
def test_every_tensor_settles_once_and_every_group_is_matched_once(spec, groups_per_stage):
    plan = StagePlan.build(spec, groups_per_stage)
    assert sorted(name for stage in plan.stages for name in stage.settles) == sorted(spec.axes)
    assert [group for stage in plan.stages for group in stage.groups] == list(spec.groups)
    assert plan.stages[-1].groups == ()
    assert set(spec.head) <= set(plan.stages[-1].settles)


@given(st.sampled_from(SPECS), st.integers(1, 5))
def test_what_settles_has_all_its_groups_matched(spec, groups_per_stage):
    matched = set()
    for stage in StagePlan.build(spec, groups_per_stage).stages:
        matched |= set(stage.groups)
        assert set(stage.settles) <= set(stage.uploads)
        assert all(spec.tensor_groups(name) <= matched for name in stage.settles)


@pytest.mark.parametrize("value", [0, -1, "some", 1.5, None])
def test_a_wrong_groups_per_stage_is_refused(value):
    with pytest.raises(ValueError, match="groups_per_stage"):
        StagePlan.build(LENET, value)


def test_a_spec_without_groups_has_the_head_stage_alone():
    plan = StagePlan.build(PermutationSpec(groups={}, axes={"w": "2, 3"}))
    assert [stage.settles for stage in plan.stages] == [("w",)]
