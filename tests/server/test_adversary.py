"""Hostile clients: whatever they send, the run goes on, the model is sound."""

import logging
from contextlib import contextmanager

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from fedma_flwr import FedAvg, fedma_mod, wire
from fedma_flwr.testing import InProcessGrid
from tests.toy import SPEC, LayerwiseFedMA, initial_arrays, make_app

HONEST = 2
COUNTS = [0, -1, 0.0, float("nan"), float("inf"), 1e308, 2**54, [5], [float("nan")]]


def pick(answer, seed):
    """One of the reply's tensors."""
    arrays = answer.content["arrays"]
    name = sorted(arrays)[seed % len(arrays)]
    return arrays, name, wire.to_tensor(arrays[name]).numpy()


def fill(value):
    def change(answer, seed):
        arrays, name, values = pick(answer, seed)
        values = values.copy()
        values.reshape(-1)[seed % values.size] = value
        arrays[name] = Array(values)

    return change


def replace(make):
    def change(answer, seed):
        arrays, name, values = pick(answer, seed)
        arrays[name] = make(values)

    return change


def metric(key, allowed):
    def change(answer, seed):
        answer.content["metrics"][key] = allowed[seed % len(allowed)]

    return change


def report(**entries):
    def change(answer, seed):
        for key, value in entries.items():
            answer.content["fedma"][key.replace("_", "-")] = value

    return change


def replay(answer, seed):
    """The state token of an earlier or a later stage or round."""
    run, server_round, stage = answer.content["fedma"]["holds"].split(".")
    offset = [-2, -1, 1, 2][seed % 4]
    place = (server_round, int(stage) + offset) if seed % 2 else (int(server_round) + offset, stage)
    answer.content["fedma"]["holds"] = f"{run}.{place[0]}.{place[1]}"


def absurd(values):
    return Array("float32", (2**31 - 1, 2**31 - 1), "numpy.ndarray", Array(values).data)


def lying(values):
    array = Array(values)
    array.data = array.data.replace(b"(", b"[", 1)
    return array


# Each is refused: its client is dropped, in its stage, and named.
REFUSED = {
    "nan": fill(np.nan),
    "infinity": fill(-np.inf),
    "wider": replace(lambda v: Array(np.zeros((*v.shape[:-1], v.shape[-1] + 1), v.dtype))),
    "flat": replace(lambda v: Array(np.zeros(v.size + 1, v.dtype))),
    "float64": replace(lambda v: Array(v.astype(np.float64))),
    "int32": replace(lambda v: Array(v.astype(np.int32))),
    "absurd size": replace(absurd),
    "lying header": replace(lying),
    "garbage": replace(lambda v: Array("float32", v.shape, "numpy.ndarray", b"\xff" * v.nbytes)),
    "pickle": replace(lambda v: Array("float32", v.shape, "pickle", Array(v).data)),
    "missing": lambda answer, seed: answer.content["arrays"].pop(pick(answer, seed)[1]),
    "extra": lambda answer, seed: answer.content["arrays"].update({"z": Array(np.zeros(1))}),
    "no arrays": lambda answer, seed: answer.content.pop("arrays"),
    "two arrays": lambda answer, seed: answer.content.update({"more": ArrayRecord()}),
    "no metrics": lambda answer, seed: answer.content.pop("metrics"),
    "two metrics": lambda answer, seed: answer.content.update({"more": MetricRecord()}),
    "examples": metric("num-examples", COUNTS),
    "class counts": metric("class-counts", [[-1, 5], [float("nan"), 1.0], [1e308, 1e308], 3]),
    "replay": replay,
    "token": report(holds="\x00'; drop"),
    "status": report(status="finished"),
    "always lost": report(status="lost"),
    "version": report(version=2**40),
    "worded version": report(version="newest"),
    "report of lists": report(version=[1, 2]),
    "no report": lambda answer, seed: answer.content.pop("fedma"),
    "report of metrics": lambda answer, seed: answer.content.update({"fedma": MetricRecord()}),
    "empty": lambda answer, seed: answer.content.clear(),
}


def hostile_app(plan, kinds):
    """An app whose clients from `HONEST` on answer as their attack says, in its stage."""

    def lie(message, context, call_next):
        answer = call_next(message, context)
        client, record = context.node_config["partition-id"], message.content.get("fedma")
        if client < HONEST or record is None or record["kind"] == "hello" or answer.has_error():
            return answer
        name, stage, seed = plan[client - HONEST]
        if record["stage"] == stage:
            kinds[name](answer, seed + record["round"])
        return answer

    return make_app(mods=(lie, fedma_mod), steps=1)


@contextmanager
def quiet():
    """Thousands of clients that are named in the log need not be read."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


def run(plan, kinds, rounds, **options):
    strategy = LayerwiseFedMA(spec=SPEC, fraction_evaluate=0.0, **options)
    grid = InProcessGrid(hostile_app(plan, kinds), HONEST + len(plan))
    with quiet():
        result = strategy.start(grid, initial_arrays(), num_rounds=rounds)
    return strategy, result


def check_sound(strategy, result, honest=HONEST):
    assert all(np.isfinite(array.numpy()).all() for array in result.arrays.values())
    for record in strategy.history:
        limits = strategy.settings.max_widths
        assert all(width <= limits[group] for group, width in record.widths.items())
        assert not {str(client) for client in range(honest)} & record.dropped.keys()


def test_what_malformed_replies_leave_is_what_the_honest_clients_made():
    plan = [(name, 0, number) for number, name in enumerate(sorted(REFUSED))]
    _, attacked = run(plan, REFUSED, rounds=2)
    _, alone = run([], REFUSED, rounds=2)
    assert all(attacked.arrays[name].data == alone.arrays[name].data for name in alone.arrays)


EVALUATIONS = {
    "no metrics": RecordDict(),
    "two": RecordDict({"a": MetricRecord({"num-examples": 1}), "b": MetricRecord({"x": 1})}),
    "no weight": RecordDict({"a": MetricRecord({"accuracy": 0.5})}),
    "weight of 0": RecordDict({"a": MetricRecord({"num-examples": 0, "accuracy": 0.5})}),
    "huge weight": RecordDict({"a": MetricRecord({"num-examples": 1e308, "accuracy": 0.5})}),
    "weights": RecordDict({"a": MetricRecord({"num-examples": [1], "accuracy": 0.5})}),
    "nan": RecordDict({"a": MetricRecord({"num-examples": 5, "accuracy": float("nan")})}),
    "others": RecordDict({"a": MetricRecord({"num-examples": 5, "speed": 2.0})}),
    "list": RecordDict({"a": MetricRecord({"num-examples": 5, "accuracy": [0.5, 1.0]})}),
    "other record": RecordDict({"a": ConfigRecord({"num-examples": 5})}),
}


@pytest.mark.parametrize("make", [lambda: LayerwiseFedMA(spec=SPEC), FedAvg])
@pytest.mark.parametrize("name", [*EVALUATIONS, "error"])
def test_a_malformed_evaluation_is_left_out_and_named(caplog, name, make):
    bad = 3

    def intercept(message, context):
        hostile = context.node_config["partition-id"] == bad
        if not hostile or message.metadata.message_type != "evaluate":
            return None
        content = Error(2, "out of memory") if name == "error" else EVALUATIONS[name]
        return Message(content, reply_to=message)

    def accuracy(intercept, clients):
        strategy = make()
        strategy.min_evaluate_nodes = clients
        grid = InProcessGrid(make_app(), 4, intercept=intercept)
        result = strategy.start(grid, initial_arrays(), num_rounds=1)
        return result.evaluate_metrics_clientapp[1]["accuracy"]

    attacked = accuracy(intercept, 4)
    assert f"client {bad} (node 103) is left out of the evaluation" in caplog.text
    assert attacked != accuracy(None, 4)  # client 3's share is gone
    assert 0.0 <= attacked <= 1.0


@pytest.mark.parametrize("key", ["²", "7" * 5000, "x" * 10**6, "a\x00b", "0"])
def test_a_hostile_client_key_does_no_harm(key):
    grid = InProcessGrid(make_app(), 4)
    grid.contexts[103].node_config["client-key"] = key
    strategy = LayerwiseFedMA(spec=SPEC)
    with quiet():
        result = strategy.start(grid, initial_arrays(), num_rounds=2)
    check_sound(strategy, result)
    stages = [record for record in strategy.history if record.name != "hello"]
    assert [record.answered for record in stages] == [4] * 6
