"""Runs whose heads are solved from private moments."""

import pytest
import torch
from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp.exception import AggregationError

from fedma_flwr import Stage, load_model, private_head_moments
from tests.client.test_private_head_moments import GradSampleModule
from tests.server.solved_head import accuracy, run, stages
from tests.toy import Net, data, fit, make_app, reply


def private_app(*, max_norm=2.0, **options):
    """Moments with noise; the generator is the client's, so that a run can be repeated."""

    def train(message, context, client):
        model = load_model(Net(), message)
        if not Stage.from_message(message).solves_head:
            fit(model, client, steps=10)
            return reply(message, model, client)
        x, y = data(client)
        moments = private_head_moments(
            model,
            [(x, y)],
            max_norm=max_norm,
            generator=torch.Generator().manual_seed(client),
            **options,
        )
        metrics = MetricRecord({"num-examples": len(y), "rho": moments.rho})
        return Message(RecordDict({"a": moments.arrays, "m": metrics}), reply_to=message)

    return make_app(train)


@pytest.mark.parametrize("averaging", ["mean", "trimmed_mean"])
@pytest.mark.parametrize("noise", [0.5, 50.0])
def test_a_run_with_private_moments_completes(noise, averaging):
    strategy = run(private_app(noise_multiplier=noise), averaging=averaging)
    assert not strategy.history.given_up
    assert [record.answered for record in stages(strategy)] == [4, 4, 4, 4]
    assert stages(strategy)[-1].metrics["rho"] == pytest.approx(0.5 / noise**2)
    assert all(torch.tensor(a.numpy()).isfinite().all() for a in strategy.result.arrays.values())


def test_next_to_no_noise_costs_nothing():
    private = run(private_app(noise_multiplier=1e-9, max_norm=64.0)).result.arrays
    assert accuracy(private) == pytest.approx(accuracy(run().result.arrays), abs=0.01)


def test_bare_moments_of_a_model_that_opacus_trains_fail_the_run_with_the_way_out():
    def train(message, context, client):
        model = load_model(Net(), message)
        wrapped = GradSampleModule(model)
        fit(wrapped, client)
        return reply(message, model, client)

    with pytest.raises(AggregationError, match="private_head_moments"):
        run(make_app(train), rounds=1)
