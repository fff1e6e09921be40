"""Batch norm in FedMA: statistics travel with their channels and are estimated anew."""

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from torch import nn

from fedma_flwr import Stage, load_model, protocol
from fedma_flwr.matching import BBPMAP
from fedma_flwr.testing import InProcessGrid
from tests.server.normed import SPEC, STATISTICS, Normed, run, stage_records, train
from tests.toy import CLIENTS, LayerwiseFedMA, data, fit, make_app, reply


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
