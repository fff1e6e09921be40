"""Records of exchanges, and what becomes of a stage that goes wrong."""

import json
from types import SimpleNamespace

import pytest
import torch
from flwr.serverapp.exception import AggregationError

from fedma_flwr import FedAvg
from fedma_flwr.matching import BBPMAP, IdentityMatching
from fedma_flwr.server import exchange, hello, stage_end
from fedma_flwr.server.global_model import GlobalModel, count_parameters
from fedma_flwr.server.history import ExchangeRecord, History, all_failed, mean_epochs
from fedma_flwr.server.messages import error_reason
from fedma_flwr.testing import InProcessGrid, SilentError
from tests.toy import SPEC, LayerwiseFedMA, initial_arrays, make_app


def start(strategy, clients=4, rounds=1, **options):
    grid = InProcessGrid(make_app(steps=1), clients, **options)
    return strategy.start(grid, initial_arrays(), num_rounds=rounds)


def stages(strategy):
    return [record for record in strategy.history if record.name != "hello"]


def test_a_record_survives_json():
    record = ExchangeRecord(
        2, 1, 3, "retrain", ("a", "b"), 4, 3, {"x": "late"}, ("y", "z"), 5, 6, 1.5, 0.25, 0.5,
        {"a": 7}, 1.25, 0.5, {"a": [1, 2]}, {"a": -3.0}, took_part=("u", "v"),
    )  # fmt: skip
    assert ExchangeRecord.from_json(json.loads(json.dumps(record.to_json()))) == record


def test_records_of_earlier_versions_named_nobody():
    entry = ExchangeRecord(2, 1, 3, "retrain", answered=3).to_json()
    for name in ("took_part", "similarity", "head_scores", "filters"):
        del entry[name]
    assert ExchangeRecord.from_json(entry) == ExchangeRecord(2, 1, 3, "retrain", answered=3)


def test_a_record_begins_with_nothing():
    nothing = dict.fromkeys(("cohort", "answered", "bytes_down", "bytes_up", "epochs"), 0)
    nothing |= {"seconds_waiting": 0, "seconds_matching": 0, "growth": 1, "identity": None}
    nothing |= {
        "metrics": {},
        "groups": (),
        "resent": (),
        "dropped": {},
        "widths": {},
        "popularity": {},
        "took_part": (),
        "similarity": {},
        "head_scores": {},
        "filters": {},
    }
    named = {"round": 4, "stage": 0, "stages": 2, "name": "local", "objective": {}, "settled": {}}
    assert ExchangeRecord(4, 0, 2, "local").to_json() == {**named, **nothing}


def test_totals_count_hellos_as_bytes_but_not_as_exchanges():
    history = History()
    history.add(ExchangeRecord(1, 0, 1, "hello", bytes_up=1, bytes_down=10))
    history.add(ExchangeRecord(1, 0, 2, "local", bytes_up=2, bytes_down=20, epochs=3.0))
    history.add(ExchangeRecord(1, 1, 2, "head", bytes_up=4, bytes_down=40, epochs=0.5))
    assert history.totals() == {
        "bytes_up": 7,
        "bytes_down": 70,
        "exchanges": 2,
        "client_epochs": 3.5,
    }
    assert History().totals()["exchanges"] == 0


def test_what_a_client_says_is_short_and_cannot_forge_a_line(caplog):
    record, told = ExchangeRecord(1, 0, 1, "local"), History()
    caplog.set_level("INFO", logger="flwr")
    record.drop("3\nINFO : all is well", 7, "boom\nWARNING : forged \x1b[2J" + "x" * 10**6)
    told.give_up(2, "few\n" + "x" * 10**6)
    (key,), (reason,) = record.dropped, record.dropped.values()
    assert key == "3\\nINFO : all is well"
    assert reason.startswith("boom\\nWARNING : forged \\x1b[2Jxxx")
    assert max(len(reason), len(told.given_up[2])) < 600
    assert [len(line.message.splitlines()) for line in caplog.records] == [1, 1]
    answer = SimpleNamespace(
        has_error=lambda: True, error=SimpleNamespace(code=2, reason=" no\n" * 10**6)
    )
    assert error_reason(answer).startswith("error 2: no\\n no\\n")
    assert len(error_reason(answer)) < 600


@pytest.mark.parametrize("epochs", [1e308, float("inf"), -1, "3", float("nan"), [1]])
def test_epochs_that_nobody_trains_do_not_count(epochs):
    assert mean_epochs([{"epochs": 3}, {"epochs": epochs}, {}]) == 3.0


def test_the_reason_that_most_gave_is_said():
    dropped = {"1": "x", "2": "y", "3": "y"}
    assert all_failed(4, "head", dropped) == (
        "Round 4: every client failed in the head stage. 2 of 3 said: y"
    )
    assert all_failed(4, "head", {}) == "Round 4: no client replied in the head stage."


def test_new_clients_get_the_most_popular_units_and_others_their_own():
    model = GlobalModel(
        {},
        assignments={"x": {"h": torch.tensor([3, 0])}},
        popularity={"h": torch.tensor([1, 4, 2, 4, 2])},
    )
    assert model.selection("x", "h", 5).tolist() == [3, 0]
    # 1 and 3 are held by four clients; of 2 and 4, both held by two, the first.
    assert model.selection("y", "h", 3).tolist() == [1, 2, 3]
    assert model.selection("y", "h", 9).tolist() == [0, 1, 2, 3, 4]
    assert GlobalModel({}).selection("y", "h", 3).tolist() == [0, 1, 2]
    assert count_parameters({"a": torch.ones(2, 3), "b": torch.ones(())}) == 7


def test_records_add_up_and_growth_is_measured_against_the_initial_model():
    strategy = LayerwiseFedMA(
        spec=SPEC,
        fraction_evaluate=0.0,
        initialisation="own",
        matcher=BBPMAP.reference(gamma=10.0),  # one that makes new units
        max_growth=3.0,
    )
    result = start(strategy, rounds=2)
    for record in stages(strategy):
        assert (record.cohort, record.answered, record.stages) == (4, 4, 3)
        assert record.bytes_down > 0
        assert record.bytes_up > 0
        assert record.seconds_waiting > 0
        assert record.seconds_matching > 0
        assert record.epochs == 3.0
    # While a round goes on, the model is that of the round before.
    after_first, after_second = (stages(strategy)[index].growth for index in (2, 5))
    assert [record.growth for record in stages(strategy)] == [
        1.0, 1.0, after_first, after_first, after_first, after_second,
    ]  # fmt: skip
    numbers = sum(array.numpy().size for array in result.arrays.values())
    assert after_second == numbers / 158
    assert len({1.0, after_first, after_second}) == 3


def test_waiting_and_matching_are_timed_each_by_itself(monkeypatch):
    """A clock that only the grid and the matcher move."""
    clock = SimpleNamespace(now=100.0)
    clock.monotonic = lambda: clock.now
    for module in (hello, exchange, stage_end):
        monkeypatch.setattr(module, "time", clock)

    class SlowGrid(InProcessGrid):
        def send_and_receive(self, messages, *, timeout=None):
            clock.now += 7.0
            return super().send_and_receive(messages, timeout=timeout)

    class SlowMatching(IdentityMatching):
        def match(self, units, **options):
            clock.now += 2.0
            return super().match(units, **options)

    strategy = LayerwiseFedMA(spec=SPEC, matcher=SlowMatching(), fraction_evaluate=0.0)
    strategy.start(SlowGrid(make_app(steps=0), 2), initial_arrays(), num_rounds=1)
    assert [record.name for record in strategy.history] == ["hello", "local", "retrain", "head"]
    assert [record.seconds_waiting for record in strategy.history] == [7.0] * 4
    assert [record.seconds_matching for record in strategy.history] == [0.0, 2.0, 2.0, 0.0]


def fail_at(round_and_stage, clients, *, silent=False):
    """An interceptor under which some clients fail in one stage."""

    def intercept(message, context):
        record = message.content.get("fedma")
        if record is None or record["kind"] == "hello":
            return
        place = (record["round"], record["stage"])
        if place == round_and_stage and context.node_config["partition-id"] in clients:
            raise SilentError if silent else RuntimeError("gone")

    return intercept


@pytest.mark.parametrize(("failing", "remain"), [([0], 3), ([0, 1], 2), ([0, 1, 2], 1)])
def test_a_round_goes_on_with_the_smallest_number_and_not_below(failing, remain):
    strategy = LayerwiseFedMA(spec=SPEC, fraction_evaluate=0.0, min_train_nodes=2)
    start(strategy, intercept=fail_at((1, 1), failing))
    said = f"{remain} clients remain in the retrain stage (stage 1), min_train_nodes is 2"
    assert strategy.history.given_up == ({} if remain >= 2 else {1: said})
    assert [r.answered for r in stages(strategy)] == ([4, remain, 4] if remain > 1 else [4, 1])
    assert list(stages(strategy)[1].dropped) == [str(client) for client in failing]


@pytest.mark.parametrize("silent", [True, False])
def test_only_the_first_round_fails_the_run_and_only_if_all_fail(silent):
    everybody = range(4)
    with pytest.raises(AggregationError, match=r"Round 1: every client failed in the retrain"):
        start(LayerwiseFedMA(spec=SPEC), intercept=fail_at((1, 1), everybody, silent=silent))
    later = LayerwiseFedMA(spec=SPEC, fraction_evaluate=0.0)
    start(later, rounds=2, intercept=fail_at((2, 1), everybody, silent=silent))
    assert list(later.history.given_up) == [2]
    but_one = LayerwiseFedMA(spec=SPEC, fraction_evaluate=0.0)
    start(but_one, intercept=fail_at((1, 1), [0, 1, 2], silent=silent))
    assert list(but_one.history.given_up) == [1]


def test_replies_that_cannot_be_used_are_all_in_the_record_before_the_run_ends():

    def lie(message, context):
        record = message.content.get("fedma")
        if record is not None and record["kind"] != "hello":
            grid_reply = make_app(steps=1)(message, context)
            grid_reply.content["fedma"]["holds"] = "another"
            return grid_reply
        return None

    strategy = LayerwiseFedMA(spec=SPEC, fraction_evaluate=0.0)
    with pytest.raises(AggregationError, match="4 of 4 said: the reply is for another stage"):
        start(strategy, intercept=lie)
    assert len(stages(strategy)[0].dropped) == 4


def test_a_reply_that_comes_twice_counts_once_and_the_others_are_still_read():
    class Repeating(InProcessGrid):
        def send_and_receive(self, messages, *, timeout=None):
            replies = list(super().send_and_receive(messages, timeout=timeout))
            return [r for r in replies[:1] if r.content["fedma"]["status"] == "done"] + replies

    strategies = [LayerwiseFedMA(spec=SPEC, fraction_evaluate=0.0) for _ in range(2)]
    for strategy, kind in zip(strategies, (InProcessGrid, Repeating), strict=True):
        strategy.start(kind(make_app(steps=1), 4), initial_arrays(), num_rounds=1)
    once, repeated = map(stages, strategies)
    assert [(r.answered, r.dropped) for r in repeated] == [(4, {})] * 3
    assert [r.bytes_up for r in repeated] == [r.bytes_up for r in once]


def test_the_baselines_records():
    """Of four clients one fails; its error is named, its bytes are none."""

    def fail(message, context):
        if "arrays" in message.content and context.node_config["partition-id"] == 3:
            raise RuntimeError("gone")

    strategy = FedAvg(fraction_evaluate=0.0)
    start(strategy, rounds=2, intercept=fail)
    (first, second) = stages(strategy)
    assert (first.round, first.stage, first.stages, first.name) == (1, 0, 1, "local")
    assert (first.cohort, first.answered, first.epochs) == (4, 3, 3.0)
    assert first.dropped.keys() == {"3"}
    assert "gone" in first.dropped["3"]
    assert first.bytes_up < first.bytes_down * 3.3 / 4
    assert first.seconds_waiting > 0
    assert second.round == 2
    with pytest.raises(AggregationError, match="Round 1: every client failed in the train stage"):
        start(FedAvg(), intercept=lambda m, c: fail(m, c) if "arrays" not in m.content else 1 / 0)
