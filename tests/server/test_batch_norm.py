"""Batch norm in FedMA: statistics travel with their channels and are estimated anew."""

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from torch import nn

from fedma_flwr import Stage, load_model, protocol
from fedma_flwr.averaging import ClientUpdate, settle_stage
from fedma_flwr.client_statistics import estimate_statistics
from fedma_flwr.matching import BBPMAP, IdentityMatching
from fedma_flwr.structure import PermutationSpec, StagePlan, derive_spec
from fedma_flwr.testing import InProcessGrid
from tests.toy import CLIENTS, LayerwiseFedMA, data, fit, make_app, reply


class Normed(nn.Module):
    """Two hidden layers with batch norm: groups a (12 units) and b (8), head c."""

    def __init__(self):
        super().__init__()
        self.a, self.na = nn.Linear(2, 12, bias=False), nn.BatchNorm1d(12)
        self.b, self.nb = nn.Linear(12, 8, bias=False), nn.BatchNorm1d(8)
        self.c = nn.Linear(8, 2)

    def forward(self, x):
        return self.c(torch.relu(self.nb(self.b(torch.relu(self.na(self.a(x)))))))


SPEC = derive_spec(Normed(), (torch.zeros(4, 2),))
STATISTICS = ("na.running_mean", "na.running_var", "nb.running_mean", "nb.running_var")


def train(message, context, client):
    model = load_model(Normed(), message)
    model.train()
    fit(model, client, steps=4)
    return reply(message, model, client)


def run(strategy, function=train, rounds=1, evaluate=None, **grid_options):
    grid = InProcessGrid(make_app(function), CLIENTS, **grid_options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        arrays = ArrayRecord(Normed().state_dict())
    strategy.fraction_evaluate = 0.0
    return strategy.start(grid, arrays, num_rounds=rounds, evaluate_fn=evaluate)


def stage_records(strategy):
    return [record for record in strategy.history if record.name != "hello"]


def central_statistics(arrays):
    """What one network that sees the examples of all clients finds at its batch norms."""
    model = load_model(Normed(), arrays).eval()
    inputs = torch.cat([data(client)[0] for client in range(CLIENTS)])
    found = {}

    def note(module, args, _):
        found[module] = args[0]

    for layer in (model.na, model.nb):
        layer.register_forward_hook(note)
    with torch.no_grad():
        model(inputs)
    return {
        f"{name}.{what}": value
        for name, layer in (("na", model.na), ("nb", model.nb))
        for what, value in (
            ("running_mean", found[layer].mean(0)),
            ("running_var", found[layer].var(0)),
        )
    }


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


# ---------------------------------------------------------------- rounds


@pytest.mark.parametrize("initialisation", ["common", "own"])
def test_the_global_models_statistics_are_those_of_a_central_network(initialisation):
    """A stage estimates them on settled layers, so they are exact; those that are kept are not."""
    arrays = run(LayerwiseFedMA(spec=SPEC, initialisation=initialisation), rounds=2).arrays
    got, central = protocol.to_tensors(arrays), central_statistics(arrays)
    for name in STATISTICS:  # up to the correction for the degrees of freedom of 60 examples
        torch.testing.assert_close(got[name], central[name], rtol=1e-2, atol=1e-5)
    kept = LayerwiseFedMA(spec=SPEC, initialisation=initialisation, reestimate_statistics=False)
    arrays = run(kept, rounds=2).arrays
    got, central = protocol.to_tensors(arrays), central_statistics(arrays)
    for name in STATISTICS:
        assert (got[name] - central[name]).abs().max() > 0.05 * central[name].abs().max(), name


def test_settled_layers_keep_their_statistics_in_later_stages():
    seen = {}

    def spy(message, context, client):
        model = load_model(Normed(), message)
        stage = Stage.from_message(message)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.train()
        fit(model, client)
        after = model.state_dict()
        moved = {name for name in STATISTICS if not torch.equal(before[name], after[name])}
        seen.setdefault(stage.index, []).append(moved)
        return reply(message, model, client)

    run(LayerwiseFedMA(spec=SPEC), spy)
    assert seen == {
        0: [set(STATISTICS)] * CLIENTS,
        1: [set(STATISTICS)] * CLIENTS,
        2: [set(STATISTICS[2:])] * CLIENTS,
        3: [set()] * CLIENTS,
    }


@pytest.mark.parametrize("value", [-1e-3, float("nan")])
def test_a_client_with_impossible_variances_is_dropped(value):
    def lie(message, context, client):
        answer = train(message, context, client)
        if client == 1 and Stage.from_message(message).index == 2:
            answer.content["arrays"]["nb.running_var"] = Array(np.full(8, value, np.float32))
        return answer

    strategy = LayerwiseFedMA(spec=SPEC)
    result = run(strategy, lie)
    (reason,) = stage_records(strategy)[2].dropped.values()
    assert "nb.running_var" in reason
    assert all(np.isfinite(array.numpy()).all() for array in result.arrays.values())


def test_huge_means_do_not_make_infinite_variances():
    def lie(message, context, client):
        answer = train(message, context, client)
        if client == 1 and Stage.from_message(message).index == 2:
            answer.content["arrays"]["nb.running_mean"] = Array(np.full(8, 3e38, np.float32))
        return answer

    # The bound on sizes would refuse the client: this is what holds without it.
    result = run(LayerwiseFedMA(spec=SPEC, max_norm_ratio=float("inf")), lie)
    assert all(np.isfinite(array.numpy()).all() for array in result.arrays.values())
    assert result.arrays["nb.running_var"].numpy().max() > 1e38


def test_statistics_cross_once_each_way():
    sent, wanted = [], []

    def note(message, context):
        if message.content["fedma"]["kind"] != "hello" and message.content["fedma"]["round"] == 2:
            sent.extend(message.content.array_records.get("arrays", {}))
            wanted.extend(message.content["fedma"]["uploads"])

    run(LayerwiseFedMA(spec=SPEC, matcher=BBPMAP.reference(gamma=1e-9)), rounds=2, intercept=note)
    names = sorted(list(SPEC.axes) * CLIENTS)
    assert sorted(sent) == names
    assert sorted(wanted) == names


@pytest.mark.parametrize("reestimate", [True, False])
def test_growth_lost_state_and_partial_participation_go_together(reestimate):
    def forget(message, context):
        if message.content["fedma"]["kind"] != "hello" and context.node_id == 101:
            context.state.clear()

    strategy = LayerwiseFedMA(
        spec=SPEC,
        initialisation="own",
        matcher=BBPMAP.reference(gamma=1e9),
        max_growth=1.5,
        fraction_train=0.75,
        reestimate_statistics=reestimate,
    )
    result = run(strategy, rounds=4, intercept=forget)
    assert not any(record.dropped for record in strategy.history)
    assert any(record.resent for record in strategy.history)
    assert stage_records(strategy)[-1].widths == {"a": 18, "b": 12}
    got, central = protocol.to_tensors(result.arrays), central_statistics(result.arrays)
    assert all(tensor.isfinite().all() for tensor in got.values())
    assert (got["nb.running_var"] > 0).all()
    assert all(got[name].shape == central[name].shape for name in STATISTICS)


def first_on_inputs():
    return nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 2))


def without_affine():
    layers = [nn.Linear(2, 6), nn.BatchNorm1d(6, affine=False), nn.ReLU(), nn.Linear(6, 2)]
    return nn.Sequential(*layers)


def cumulative():
    layers = [nn.Linear(2, 6), nn.BatchNorm1d(6, momentum=None), nn.ReLU(), nn.Linear(6, 2)]
    return nn.Sequential(*layers)


def without_statistics():
    norm = nn.BatchNorm1d(6, track_running_stats=False)
    return nn.Sequential(nn.Linear(2, 6), norm, nn.ReLU(), nn.Linear(6, 2))


@pytest.mark.parametrize("make", [first_on_inputs, without_affine, cumulative, without_statistics])
def test_every_kind_of_batch_norm_takes_part(make):
    def train(message, context, client):
        model = load_model(make(), message)
        model.train()
        fit(model, client, steps=10)
        return reply(message, model, client)

    losses = []

    def evaluate(_, arrays):
        model = load_model(make(), arrays).eval()
        x, y = (torch.cat(part) for part in zip(*map(data, range(CLIENTS)), strict=True))
        losses.append(nn.functional.cross_entropy(model(x), y).item())

    strategy = LayerwiseFedMA(
        model=make(), example_inputs=(torch.randn(4, 2),), fraction_evaluate=0.0
    )
    strategy.start(
        InProcessGrid(make_app(train), CLIENTS),
        ArrayRecord(make().state_dict()),
        num_rounds=3,
        evaluate_fn=evaluate,
    )
    assert not any(record.dropped for record in strategy.history)
    assert losses[-1] < 0.9 * losses[0]
