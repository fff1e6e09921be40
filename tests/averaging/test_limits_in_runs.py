"""The bounds on what clients send, in whole runs."""

import numpy as np
import pytest
import torch
from flwr.app import Array

from fedma_flwr import fedma_mod
from fedma_flwr.averaging import LARGEST
from fedma_flwr.matching import BBPMAP
from fedma_flwr.testing import InProcessGrid
from tests.server.test_adversary import check_sound, quiet
from tests.toy import SPEC, LayerwiseFedMA, initial_arrays, make_app


def run(change, clients=6, honest=4, rounds=2, **options):
    """A run in which the clients from `honest` on change every tensor that they send."""

    def lie(message, context, call_next):
        answer = call_next(message, context)
        client = context.node_config["partition-id"]
        if client >= honest and "arrays" in answer.content:
            arrays = answer.content["arrays"]
            for name in arrays:
                changed = change(arrays[name].numpy(), np.random.default_rng([client, len(name)]))
                arrays[name] = Array(changed.astype(np.float32))
        return answer

    strategy = LayerwiseFedMA(spec=SPEC, fraction_evaluate=0.0, **options)
    grid = InProcessGrid(make_app(mods=(lie, fedma_mod), steps=1), clients)
    with quiet():
        result = strategy.start(grid, initial_arrays(), num_rounds=rounds)
    return strategy, result


@pytest.mark.parametrize("factor", [100.0, 1e6, 1e20, 1e36])
def test_scaled_units_are_refused_named_and_leave_no_trace(factor):
    strategy, result = run(lambda values, _: values * factor)
    _, alone = run(None, clients=4)
    assert all(result.arrays[name].data == alone.arrays[name].data for name in alone.arrays)
    firsts = [record for record in strategy.history if record.name == "local"]
    for record in firsts:
        assert record.dropped.keys() == {"4", "5"}
        assert all("max_norm_ratio" in r or "beyond 1e+09" in r for r in record.dropped.values())


MATCHERS = [
    BBPMAP(),
    BBPMAP.reference(),
    BBPMAP.learned(),
    BBPMAP(gamma=1.0, local_variance=1e-3, prior_variance=1e3),
]


@pytest.mark.parametrize("matcher", MATCHERS, ids=["calibrated", "reference", "learned", "given"])
@pytest.mark.parametrize("clients", [2, 7])
def test_even_clients_that_are_all_hostile_leave_a_finite_model(matcher, clients):
    """Nothing tells them from honest ones but the absolute bound."""

    def huge(values, rng):
        return rng.choice([-LARGEST, LARGEST, 1e-30, 3e8], size=values.shape)

    strategy, result = run(
        huge, clients, honest=0, rounds=1, matcher=matcher, max_norm_ratio=float("inf")
    )
    check_sound(strategy, result, honest=0)
    assert [record.answered for record in strategy.history][1:] == [clients] * 3


@pytest.mark.parametrize("initialisation", ["common", "own"])
def test_new_units_every_round_never_pass_the_cap(initialisation):
    """Random large units match nobody's: each client adds as many as it may, round after round."""
    strategy, result = run(
        lambda values, rng: rng.normal(size=values.shape) * 5,
        rounds=12,
        max_growth=1.5,
        matcher=BBPMAP(gamma=100.0),
        initialisation=initialisation,
        max_norm_ratio=100.0,
    )
    check_sound(strategy, result)
    limits = strategy.settings.max_widths
    assert limits == {"a": 18, "b": 12}
    assert any(record.widths.get("a") == 18 for record in strategy.history)  # the attack works
    assert strategy.settings.spec.widths(
        {name: torch.tensor(array.numpy()) for name, array in result.arrays.items()}
    ) == {"a": 18, "b": 12}


def test_hostile_clients_cannot_end_a_run_that_has_a_complete_round():
    """Not even if nobody sends anything that can be used: the rounds are given up."""

    def intercept(message, context):
        record = message.content["fedma"]
        if record["round"] == 2 and record["stage"] == 1:
            raise ConnectionError("gone")

    strategy = LayerwiseFedMA(spec=SPEC, fraction_evaluate=0.0)
    grid = InProcessGrid(make_app(steps=1), 4, intercept=intercept)
    with quiet():
        strategy.start(grid, initial_arrays(), num_rounds=3)
    assert strategy.history.given_up.keys() == {2}


def test_the_metrics_too_are_weighted_within_bounds():
    def lie(message, context, call_next):
        answer = call_next(message, context)
        if context.node_config["partition-id"] == 3 and "metrics" in answer.content:
            answer.content["metrics"]["num-examples"] = 2**53
            answer.content["metrics"]["epochs"] = 103.0
        elif "metrics" in answer.content:
            answer.content["metrics"]["epochs"] = 3.0
        return answer

    strategy = LayerwiseFedMA(spec=SPEC, fraction_evaluate=0.0, max_weight_ratio=2.0)
    grid = InProcessGrid(make_app(mods=(lie, fedma_mod)), 4)
    result = strategy.start(grid, initial_arrays(), num_rounds=1)
    # Weights 60, 60, 60 and 120: 3 + 100 * 2 / 5
    assert result.train_metrics_clientapp[1]["epochs"] == pytest.approx(43.0)


def test_chance_does_not_end_a_run_in_its_first_round():
    """Two clients fail in the first stage, the other two in the second, and all are asked again."""

    def intercept(message, context):
        record, client = message.content["fedma"], context.node_config["partition-id"]
        if record["kind"] != "hello" and (record["round"], record["stage"]) == (1, int(client < 2)):
            raise ConnectionError("gone")

    strategy = LayerwiseFedMA(spec=SPEC, fraction_evaluate=0.0)
    grid = InProcessGrid(make_app(steps=1), 4, intercept=intercept)
    with quiet():
        strategy.start(grid, initial_arrays(), num_rounds=2)
    assert not strategy.history.given_up
    assert [record.answered for record in strategy.history] == [4, 2, 2, 4, 4, 4, 4]
