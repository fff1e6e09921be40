"""A mistake that all clients share ends the run in its first round; one client's never does."""

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.exception import AggregationError

from fedma_flwr import FedAvg, FedMA, FedProx, load_model
from fedma_flwr.testing import InProcessGrid
from tests.toy import CLIENTS, SPEC, LayerwiseFedMA, Net, fit, initial_arrays, make_app, reply


def answer(message, client):
    model = load_model(Net(), message)
    fit(model, client)
    return reply(message, model, client)


def no_examples(message, client):
    answered = answer(message, client)
    answered.content["metrics"].pop("num-examples")
    return answered


def metric(value):
    def change(message, client):
        answered = answer(message, client)
        answered.content["metrics"]["num-examples"] = value
        return answered

    return change


def cast(dtype):
    def change(message, client):
        answered = answer(message, client)
        state = answered.content["arrays"].to_torch_state_dict()
        answered.content["arrays"] = ArrayRecord({n: t.to(dtype) for n, t in state.items()})
        return answered

    return change


def missing(message, client):
    answered = answer(message, client)
    answered.content["arrays"].pop("b.weight")
    return answered


def extra(message, client):
    answered = answer(message, client)
    answered.content["arrays"]["z"] = Array(np.zeros(1, np.float32))
    return answered


def without(kind):
    def change(message, client):
        answered = answer(message, client)
        answered.content.pop(kind)
        return answered

    return change


def doubled(kind):
    def change(message, client):
        answered = answer(message, client)
        answered.content["more"] = answered.content[kind]
        return answered

    return change


def not_finite(message, client):
    answered = answer(message, client)
    answered.content["arrays"]["a.bias"] = Array(np.full(12, np.nan, np.float32))
    return answered


def other_shape(message, client):
    answered = answer(message, client)
    answered.content["arrays"]["a.bias"] = Array(np.zeros(11, np.float32))
    return answered


def raises(message, client):
    raise OSError("no such folder")


MISTAKES = {
    "no num-examples": (no_examples, r'MetricRecord\(\{"num-examples": len\(trainset\)'),
    "zero num-examples": (metric(0), "num-examples"),
    "a list of num-examples": (metric([60]), r'"num-examples": len\(trainset\)'),
    "half precision": (cast(torch.float16), r"model\.float\(\)\.state_dict\(\)"),
    "double precision": (cast(torch.float64), r"model\.float\(\)\.state_dict\(\)"),
    "missing tensor": (missing, r"b\.weight.*ArrayRecord\(model\.state_dict\(\)\)"),
    "tensor too many": (extra, "'z'"),
    "no arrays": (without("arrays"), "0 ArrayRecords"),
    "two ArrayRecords": (doubled("arrays"), r"2 ArrayRecords.*ArrayRecord\(model\.state_dict"),
    "no metrics": (without("metrics"), "0 MetricRecords"),
    "two MetricRecords": (doubled("metrics"), "2 MetricRecords"),
    "not finite": (not_finite, "not finite"),
    "other shape": (other_shape, r"a\.bias"),
    "raises": (raises, "no such folder"),
}
STRATEGIES = {
    "FedMA": lambda: FedMA(spec=SPEC, fraction_evaluate=0.0),
    "layer by layer": lambda: LayerwiseFedMA(spec=SPEC, fraction_evaluate=0.0),
    "FedAvg": lambda: FedAvg(fraction_evaluate=0.0),
    "FedProx": lambda: FedProx(fraction_evaluate=0.0),
}


def run(strategy, train, rounds=2):
    app = make_app(lambda message, context, client: train(message, client))
    return strategy.start(InProcessGrid(app, CLIENTS), initial_arrays(), num_rounds=rounds)


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("name", STRATEGIES)
def test_what_all_clients_do_wrong_ends_the_run_and_one_clients_does_not(name, mistake):
    train, said = MISTAKES[mistake]
    strategy = STRATEGIES[name]()
    with pytest.raises(AggregationError, match=rf"(?s)Round 1: every client failed.*{said}"):
        run(strategy, train)

    strategy = STRATEGIES[name]()
    result = run(strategy, lambda m, client: (train if client == 2 else answer)(m, client))
    dropped = [record.dropped for record in strategy.history if record.dropped]
    assert {key for reasons in dropped for key in reasons} == {"2"}
    assert all(np.isfinite(array.numpy()).all() for array in result.arrays.values())
    assert result.arrays["a.weight"].data != initial_arrays()["a.weight"].data


def test_a_train_function_that_returns_nothing_is_told_so():
    with pytest.raises(AggregationError, match=r"returned None instead of a Message.*return Messa"):
        run(STRATEGIES["FedMA"](), lambda message, client: None)


def test_a_mistake_in_a_later_stage_ends_the_run_although_a_client_was_lost_before():
    def train(message, client):
        stage = message.content["fedma"]["stage"]
        if (stage, client) == (0, 3):
            raise OSError("its disk is full")
        return (no_examples if stage == 1 else answer)(message, client)

    with pytest.raises(AggregationError, match="num-examples"):
        run(FedMA(spec=SPEC, fraction_evaluate=0.0, head_fraction=0.0), train)


def test_all_refused_by_the_bounds_on_sizes_end_the_run():
    def train(message, client):
        answered = answer(message, client)
        state = answered.content["arrays"].to_torch_state_dict()
        answered.content["arrays"] = ArrayRecord({n: 1e12 * t for n, t in state.items()})
        return answered

    with pytest.raises(AggregationError, match="values beyond"):
        run(STRATEGIES["FedMA"](), train)


@pytest.mark.parametrize("name", STRATEGIES)
def test_after_a_complete_round_it_is_weather(name):
    def train(message, client):
        late = message.content["config"]["server-round"] > 1
        return (no_examples if late else answer)(message, client)

    strategy = STRATEGIES[name]()
    run(strategy, train)
    assert list(strategy.history.given_up) == [2]


def test_what_fails_in_the_head_stage_is_told_the_way_out():
    def train(message, client):
        if message.content["fedma"].get("head-module"):
            raise AssertionError("the loss did not go down")
        return answer(message, client)

    said = r'the loss did not go down.*head stage.*head_moments.*head="trained"'
    with pytest.raises(AggregationError, match=said):
        run(STRATEGIES["FedMA"](), train)


def test_one_clients_other_names_and_metrics_do_not_end_fedavg():
    def train(message, client):
        answered = answer(message, client)
        content = answered.content
        if client == 1:
            content = RecordDict({"w": content["arrays"], "m": MetricRecord({"num-examples": 60})})
        return Message(content, reply_to=message)

    result = run(FedAvg(fraction_evaluate=0.0), train, rounds=1)
    assert result.train_metrics_clientapp[1]["epochs"] == pytest.approx(3)


def test_config_records_without_bounds_are_refused():
    def train(message, client):
        answered = answer(message, client)
        if client == 2:
            answered.content["mine"] = ConfigRecord({"everything": b"x" * 2**21})
        return answered

    strategy = STRATEGIES["FedMA"]()
    run(strategy, train, rounds=1)
    assert "ConfigRecords have" in strategy.history.exchanges[1].dropped["2"]
