"""Who misses a stage is asked again in the next one: nobody is lost for a round."""

import numpy as np
import pytest
import torch
from flwr.app import Array

from fedma_flwr import FedMA, fedma_mod
from fedma_flwr.testing import InProcessGrid, SilentError
from tests.toy import CLIENTS, SPEC, LayerwiseFedMA, initial_arrays, make_app

BAD = 2


def missing(*places, client=BAD, error=SilentError):
    """An interceptor: a client misses these (round, stage)s."""

    def intercept(message, context):
        record = message.content["fedma"]
        if (
            context.node_config["partition-id"] == client
            and record["kind"] != "hello"
            and (record["round"], record["stage"]) in places
        ):
            raise error

    return intercept


def run(strategy, intercept, *, rounds=1, app=None):
    grid = InProcessGrid(app or make_app(), CLIENTS, intercept=intercept)
    return strategy.start(grid, initial_arrays(), num_rounds=rounds)


def answered(strategy, server_round=1):
    return [
        record.answered
        for record in strategy.history
        if record.round == server_round and record.name != "hello"
    ]


@pytest.mark.parametrize("initialisation", ["common", "own"])
@pytest.mark.parametrize("server_round", [1, 2])
@pytest.mark.parametrize("stage", [0, 1])
def test_it_takes_part_again_in_the_next_stage(stage, server_round, initialisation):
    strategy = LayerwiseFedMA(spec=SPEC, initialisation=initialisation)
    result = run(strategy, missing((server_round, stage)), rounds=3)
    expected = [CLIENTS] * 3
    expected[stage] -= 1
    assert answered(strategy, server_round) == expected
    assert answered(strategy, 3) == [CLIENTS] * 3
    for array in result.arrays.values():
        assert np.isfinite(array.numpy()).all()


def test_its_moments_count_although_it_has_missed_local_training():
    strategy = FedMA(spec=SPEC)
    run(strategy, missing((1, 0)))
    assert answered(strategy) == [CLIENTS - 1, CLIENTS]


@pytest.mark.parametrize("server_round", [1, 2])
def test_training_that_got_out_of_hand_costs_a_client_the_stage_and_not_its_moments(server_round):
    """Only it may have a class, and what its examples are in settled layers is as good as ever."""

    def diverge(message, context, call_next):
        instruction, answer = message.content.get("fedma"), call_next(message, context)
        trained = (instruction["round"], instruction["stage"]) == (server_round, 0)
        if context.node_config["partition-id"] == BAD and trained and "arrays" in answer.content:
            arrays = answer.content["arrays"]
            for name in arrays:
                arrays[name] = Array(arrays[name].numpy() * 1000)
        return answer

    strategy = FedMA(spec=SPEC)
    result = run(strategy, None, rounds=2, app=make_app(mods=(diverge, fedma_mod)))
    assert answered(strategy, server_round) == [CLIENTS - 1, CLIENTS]
    assert answered(strategy, 3 - server_round) == [CLIENTS, CLIENTS]
    (first,) = (
        r for r in strategy.history if (r.round, r.stage) == (server_round, 0) and r.dropped
    )
    assert "max_norm_ratio" in first.dropped[str(BAD)]
    for array in result.arrays.values():
        assert np.isfinite(array.numpy()).all()


def test_it_goes_on_with_the_units_that_its_own_would_have_become():
    """With fixed features, a client that comes back is sent just what the others have."""
    seen = {}

    def note(message, context):
        record = message.content["fedma"]
        if record["kind"] != "hello" and record["stage"] == 2:
            seen[context.node_config["partition-id"]] = record["kind"]
        return missing((1, 0), (1, 1))(message, context)

    strategy = LayerwiseFedMA(spec=SPEC)
    run(strategy, note)
    assert seen == {0: "update", 1: "update", BAD: "full", 3: "update"}
    units = strategy._model.assignments
    assert {key: units[key].keys() for key in units} == {
        str(client): SPEC.groups.keys() for client in range(CLIENTS)
    }
    for group in SPEC.groups:  # nobody's units were merged: from common weights all are the same
        assert torch.equal(units[str(BAD)][group], units["0"][group])


def test_afterwards_it_holds_the_model_as_everybody_does():
    kinds = []

    def note(message, context):
        record = message.content["fedma"]
        if context.node_config["partition-id"] == BAD and record["round"] == 2:
            kinds.append(record["kind"])
        return missing((1, 0))(message, context)

    run(LayerwiseFedMA(spec=SPEC), note, rounds=2)
    assert kinds == ["update"] * 3


def test_who_fails_by_an_error_is_asked_once_more_and_then_left_alone():
    asked = []
    places = [(1, stage) for stage in range(3)]

    def note(message, context):
        if context.node_config["partition-id"] == BAD and "fedma" in message.content:
            asked.append(message.content["fedma"]["stage"])
        return missing(*places, error=RuntimeError("out of memory"))(message, context)

    strategy = LayerwiseFedMA(spec=SPEC)
    run(strategy, note)
    assert asked == [0, 0, 1]  # the hello, and two stages
    assert [len(record.dropped) for record in strategy.history] == [0, 1, 1, 0]


def test_a_later_stage_that_too_few_answer_is_asked_again_before_the_round_is_given_up():
    missed = set()

    def once(message, context):
        record, client = message.content["fedma"], context.node_config["partition-id"]
        if record["stage"] == 1 and client and client not in missed:
            missed.add(client)
            raise SilentError

    strategy = LayerwiseFedMA(spec=SPEC, min_train_nodes=3)
    run(strategy, once)
    assert not strategy.history.given_up
    assert answered(strategy) == [CLIENTS] * 3
    assert not any(record.dropped for record in strategy.history)


def test_a_round_without_its_clients_is_given_up_all_the_same():
    def gone(message, context):
        record, client = message.content["fedma"], context.node_config["partition-id"]
        if record["kind"] != "hello" and record["stage"] == 1 and client:
            raise SilentError

    strategy = LayerwiseFedMA(spec=SPEC, min_train_nodes=3)
    run(strategy, gone)
    assert "1 clients remain in the retrain stage" in strategy.history.given_up[1]


@pytest.mark.parametrize("share", [0.2, 0.3])
def test_random_losses_cost_no_round(share):
    """Each message is lost by itself: eight of ten (seven) are there in every stage."""
    generator = np.random.default_rng(0)

    def lose(message, context):
        if message.content["fedma"]["kind"] != "hello" and generator.random() < share:
            raise SilentError

    strategy = LayerwiseFedMA(spec=SPEC)
    grid = InProcessGrid(make_app(steps=1), 10, intercept=lose)
    strategy.start(grid, initial_arrays(), num_rounds=3)
    assert not strategy.history.given_up
    records = [record for record in strategy.history if record.name != "hello"]
    assert len(records) == 9
    assert np.mean([record.answered for record in records]) > 10 * (1 - share) - 1
