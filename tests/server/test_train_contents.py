"""What `train_metrics_aggr_fn` is given, and the means that stand where there is none."""

import math

import pytest
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from fedma_flwr import FedAvg, FedMA, load_model
from fedma_flwr.server.reply_metrics import aggregate, mean_metrics
from fedma_flwr.testing import InProcessGrid
from tests.toy import CLIENTS, SPEC, LayerwiseFedMA, Net, fit, initial_arrays, make_app, reply


def run(strategy, change=lambda content, client, stage: None):
    def train(message, context, client):
        model = load_model(Net(), message)
        fit(model, client)
        instruction = message.content.get("fedma") or {"stage": 0}
        answered = reply(message, model, client, stage=instruction["stage"])
        answered.content["info"] = ConfigRecord({"host": f"h{client}"})
        change(answered.content, client, instruction["stage"])
        return answered

    grid = InProcessGrid(make_app(train), CLIENTS)
    return strategy.start(grid, initial_arrays(), num_rounds=1).train_metrics_clientapp


@pytest.mark.parametrize("make", [FedMA, LayerwiseFedMA, FedAvg])
def test_a_users_function_gets_all_records_but_the_arrays_contents(make):
    seen = []

    def function(contents, key):
        seen.extend(contents)
        assert key == "num-examples"
        return MetricRecord({"clients": len(contents)})

    options = {} if make is FedAvg else {"spec": SPEC}
    metrics = run(make(train_metrics_aggr_fn=function, fraction_evaluate=0.0, **options))
    assert dict(metrics[1]) == {"clients": CLIENTS}
    assert [content["info"]["host"] for content in seen] == ["h0", "h1", "h2", "h3"]
    assert set(seen[0]["arrays"]) == set(Net().state_dict())
    assert len(seen[0].array_records) == len(seen[0].metric_records) == 1
    assert seen[0]["metrics"]["class-counts"]
    if make is not FedAvg:
        assert sum(array.numpy().size for array in seen[0]["arrays"].values()) == 0


@pytest.mark.parametrize(
    ("make", "stages", "last"), [(FedMA, 2, 0), (LayerwiseFedMA, 3, 2)], ids=["solved", "trained"]
)
def test_metrics_are_those_of_the_last_stage_that_trains_and_all_can_be_reached(make, stages, last):
    """With a solved head nothing is trained in the head stage: its loss says nothing."""
    seen, records = [], []

    def function(contents, key):
        seen.extend(contents)
        return MetricRecord({"x": 1})

    options = {"spec": SPEC, "fraction_evaluate": 0.0}
    run(make(train_metrics_aggr_fn=function, **options))
    assert {content["metrics"]["stage"] for content in seen} == {last}
    for content in seen:
        assert [content[f"stage-{i}"]["stage"] for i in range(stages)] == list(range(stages))
    strategy = make(on_exchange=records.append, **options)
    assert run(strategy)[1]["stage"] == pytest.approx(last)
    assert [r.metrics["stage"] for r in records[1:]] == pytest.approx(list(range(stages)))


@pytest.mark.parametrize("make", [lambda: FedMA(spec=SPEC), FedAvg], ids=["FedMA", "FedAvg"])
def test_a_metric_that_some_clients_send_is_the_mean_over_those_and_logged(make, caplog):
    def change(content, client, stage):
        if client in {1, 3}:
            content["metrics"]["auc"] = client / 4

    caplog.set_level("INFO", logger="flwr")
    metrics = run(make(), change)[1]
    assert metrics["auc"] == pytest.approx(0.5)
    assert metrics["epochs"] == pytest.approx(3)
    assert "Metric 'auc': mean of 2 of 4 clients" in caplog.text


def test_a_users_function_that_one_client_breaks_is_asked_without_it(caplog):
    def change(content, client, stage):
        if client == 2:
            content["metrics"]["stage"] = [1.0, 2.0]

    def function(contents, key):
        return MetricRecord({"sum": sum(c["metrics"]["stage"] + 1 for c in contents)})

    strategy = FedMA(spec=SPEC, train_metrics_aggr_fn=function)
    assert run(strategy, change)[1]["sum"] == CLIENTS - 1
    assert "train_metrics_aggr_fn failed (TypeError" in caplog.text


def test_a_users_function_that_always_fails_ends_the_run():
    def function(contents, key):
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        run(FedMA(spec=SPEC, train_metrics_aggr_fn=function))


def test_means_are_weighted_by_kind_and_of_finite_values():
    entries = [
        {"n": 1, "x": 0.0, "l": [1.0, 2.0], "class-counts": [1]},
        {"n": 3, "x": 4.0, "l": [3.0, 4.0], "y": math.nan},
        {"n": 4, "x": [9.0], "l": [1.0], "y": 1},
    ]
    found = mean_metrics(entries, "n")
    assert dict(found) == {"x": 3.0, "l": [2.5, 3.5], "y": 1.0}
    assert math.isnan(mean_metrics([{"n": 1, "y": math.nan}], "n")["y"])


def test_infinite_metrics_do_not_reach_a_users_function_beside_finite_ones():
    contents = [RecordDict({"m": MetricRecord({"n": 1, "x": x})}) for x in (1.0, math.inf)]
    found = aggregate(contents, "n", lambda kept, key: MetricRecord({"k": len(kept)}))
    assert dict(found) == {"k": 1}
    assert aggregate([], "n", lambda kept, key: MetricRecord()) is None
