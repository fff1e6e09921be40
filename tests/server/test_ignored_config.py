"""Train functions that do not look at `retrain_config` and `head_config`, and those that do."""

import copy
import pickle

import pytest
from flwr.app import ConfigRecord, RecordDict

from fedma_flwr import FedMA, Stage, fedma_mod, load_model
from fedma_flwr.client_config_reads import WatchedConfig
from fedma_flwr.testing import InProcessGrid
from tests.server.normed import SPEC as NORMED
from tests.toy import SPEC, LayerwiseFedMA, Net, fit, initial_arrays, make_app, reply

WARNING = "The train function never looks at"


def warnings(caplog, read, rounds=2, app=None, **options):
    """What is said of a train function that does `read(message)` first."""

    def train(message, context, client):
        read(message)
        model = load_model(Net(), message)
        fit(model, client, steps=1)
        return reply(message, model, client)

    options = {"retrain_config": {"local-epochs": 1, "lr": 0.5}, **options}
    strategy = LayerwiseFedMA(spec=SPEC, fraction_evaluate=0.0, **options)
    grid = InProcessGrid(app or make_app(train), 3)
    strategy.start(
        grid,
        initial_arrays(),
        num_rounds=rounds,
        train_config=ConfigRecord({"lr": 0.1, "local-epochs": 2}),
    )
    return [r.getMessage() for r in caplog.records if WARNING in r.getMessage()]


def test_a_function_that_reads_nothing_is_named_once_a_stage(caplog):
    found = warnings(caplog, lambda message: None, head_config={"local-epochs": 9})
    assert len(found) == 2  # three stages, two of which have entries of their own; one round
    assert found[0].startswith(
        f"{WARNING} 'local-epochs', 'lr' of the message's config: retrain_config has no effect on "
        "the retrain stage."
    )
    assert f"{WARNING} 'local-epochs' of the message's config: head_config" in found[1]


def test_only_what_nobody_reads_is_named(caplog):
    (found,) = warnings(caplog, lambda message: message.content["config"]["lr"])
    assert "'local-epochs' of" in found
    assert "'lr'" not in found


def one_client_reads(message):
    if message.metadata.dst_node_id == 100:
        Stage.from_message(message)


READERS = {
    "stage": Stage.from_message,
    "items": lambda message: list(message.content["config"].items()),
    "values": lambda message: list(message.content["config"].values()),
    "dict": lambda message: dict(message.content["config"]),
    "keywords": lambda message: ConfigRecord({**message.content["config"]}),
    "get": lambda message: [message.content["config"].get(k, 0) for k in ("lr", "local-epochs")],
    "in": lambda message: ["lr" in (c := message.content["config"]), "local-epochs" in c],
    "copy": lambda message: message.content["config"].copy(),
    "deepcopy": copy.deepcopy,
    "pickle": lambda message: pickle.dumps(message.content["config"]),
    "text": lambda message: str(message.content["config"]),
    "equal": lambda message: message.content["config"] == {},
    "one client": one_client_reads,
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_whoever_may_have_read_them_is_not_named(caplog, read):
    assert warnings(caplog, read) == []


def test_nothing_is_said_where_nothing_is_trained_or_nothing_is_set(caplog):
    solved = {"groups_per_stage": "all", "head": "solved", "head_config": {"lr": 1.0}}
    assert warnings(caplog, lambda message: None, **solved) == []
    assert warnings(caplog, lambda message: None, retrain_config=None) == []


def test_a_watched_record_is_an_ordinary_one_wherever_it_goes():
    plain = ConfigRecord({"lr": 0.5, "names": ["a", "b"]})
    for make in (copy.copy, copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r))):
        assert type(make(WatchedConfig(plain))) is ConfigRecord
        assert make(WatchedConfig(plain)) == plain
    assert WatchedConfig(plain).deflate() == plain.deflate()
    assert RecordDict({"c": WatchedConfig(plain)}).object_id == RecordDict({"c": plain}).object_id
    watched = WatchedConfig(plain)
    watched["more"] = 1
    del watched["lr"]
    assert dict(watched) == {"names": ["a", "b"], "more": 1}


@pytest.mark.parametrize("value", [7, "local-epochs", [1, 2], ["x"] * 10_000, b"lr", True])
def test_what_a_client_claims_to_have_passed_over_does_no_harm(caplog, value):
    def lie(message, context, call_next):
        answer = call_next(message, context)
        if context.node_config["partition-id"] == 2:
            answer.content["fedma"]["unread"] = value
        return answer

    def train(message, context, client):
        stage = Stage.from_message(message)
        model = load_model(Net(), message)
        return reply(message, model, client, epochs=stage.epochs)

    assert warnings(caplog, None, app=make_app(train, mods=(lie, fedma_mod))) == []
    assert "Round 2: the head was averaged" in caplog.text


COSTS = {
    "2 exchanges (FedAvg: 1), epochs of a client: those of a FedAvg round, and 1 pass without "
    "training": {"spec": SPEC},
    "3 exchanges (FedAvg: 1), epochs of a client: those of a FedAvg round, and 2 passes without "
    "training": {"spec": NORMED},
    "1 exchange (FedAvg: 1), epochs of a client: those of a FedAvg round": {
        "spec": SPEC,
        "one_shot": True,
    },
    "3 exchanges (FedAvg: 1), epochs of a client: 3 times those of a FedAvg round": {
        "spec": SPEC,
        "groups_per_stage": 1,
        "head": "trained",
        "retrain_config": {"lr": 0.1},
    },
    "3 exchanges (FedAvg: 1), epochs of a client: those of a FedAvg round and 20 more": {
        "spec": SPEC,
        "groups_per_stage": 1,
        "head": "trained",
        "retrain_config": {"local-epochs": 5},
        "head_config": {"local-epochs": 15},
    },
}


@pytest.mark.parametrize("text", COSTS)
def test_the_log_says_what_a_round_costs(caplog, text):
    strategy = FedMA(**COSTS[text])
    strategy.summary()
    assert f"A round costs: {text}\n" in caplog.text
