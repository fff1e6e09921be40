"""No bytes that a client sends end a run: real replies of real runs are damaged and decoded.

Some hundreds are tried in every run of the tests. For more, drawn anew each time::

    FEDMA_FUZZ=10000 python -m pytest tests/server/test_damaged_bytes.py -n 0
"""

import json
import logging
import os
from contextlib import suppress
from copy import deepcopy
from functools import partial

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto

from fedma_flwr import FedAvg, FedMA, FedProx
from fedma_flwr.server import exchange
from fedma_flwr.server.checkpoints import CheckpointFolder
from fedma_flwr.server.evaluation import usable_evaluations
from fedma_flwr.server.messages import count_reply
from fedma_flwr.server.replies import read_reply
from fedma_flwr.server.reply_errors import ReplyError
from fedma_flwr.server.whole_models import usable_models
from tests.server.damaged_bytes import DamagingGrid, damaged
from tests.server.test_adversary import quiet
from tests.toy import SPEC, LayerwiseFedMA, initial_arrays, make_app

WANTED = int(os.environ.get("FEDMA_FUZZ", "0"))
SEEDS = [0] if not WANTED else [int.from_bytes(os.urandom(4))]
HONEST, HOSTILE = 5, 4
STRATEGIES = {
    "FedMA": lambda **o: FedMA(spec=SPEC, **o),
    "layer by layer": lambda **o: LayerwiseFedMA(spec=SPEC, **o),
    "one-shot": lambda **o: FedMA(spec=SPEC, one_shot=True, head="trained", **o),
    "half precision": lambda **o: FedMA(spec=SPEC, wire_dtype="bfloat16", **o),
    "FedAvg": FedAvg,
    "FedProx": FedProx,
}


def attack(name, damage, folder=None, honest=HONEST, hostile=HOSTILE):
    strategy = STRATEGIES[name](checkpoint_dir=folder)
    grid = DamagingGrid(make_app(steps=1), honest + hostile, honest, damage)
    with quiet():
        result = strategy.start(grid, initial_arrays(), num_rounds=2)
    return strategy, result, grid.damages


def check(strategy, result, folder):
    assert all(np.isfinite(array.numpy()).all() for array in result.arrays.values())
    told = json.dumps([record.to_json() for record in strategy.history], allow_nan=False)
    assert len(told) < 10**6
    files = list(folder.iterdir())
    assert sum(file.stat().st_size for file in files) < 10**6
    names = {key for record in strategy.history for key in record.dropped}
    assert not names & {str(client) for client in range(HONEST)}
    folder = CheckpointFolder(folder, strategy._folder.fingerprint)
    assert folder.latest().round == 2
    for file in files:
        file.unlink()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", STRATEGIES if WANTED else ["FedMA", "layer by layer", "FedAvg"])
def test_no_damaged_reply_ends_a_run(name, seed, tmp_path):
    count = 0
    while count <= WANTED / len(STRATEGIES):
        rng = np.random.default_rng([seed, count])
        try:
            damage = partial(damaged, rng=rng)
            strategy, result, damages = attack(name, damage, tmp_path)
            check(strategy, result, tmp_path)
        except BaseException:
            logging.getLogger(__name__).error("seed %s, after %s replies", seed, count)
            raise
        count += damages
    assert count >= 2 * 2 * HOSTILE


def test_what_is_decoded_is_read_or_refused(monkeypatch):
    """Without a run around them, damaged replies are tried much faster."""
    real, models = [], []
    monkeypatch.setattr(exchange, "read_reply", partial(_note, real))
    for name in ("FedMA", "layer by layer"):
        attack(name, deepcopy, honest=2, hostile=0)
    attack("FedAvg", lambda reply: models.append(deepcopy(reply)) or reply, honest=1, hostile=1)
    rng = np.random.default_rng(SEEDS)
    for number in range(max(300, WANTED)):
        reply, expected = real[number % len(real)]
        with suppress(Exception):  # in the decoder: the grid's guard makes an error of it
            reply = damaged(deepcopy(reply), rng)
        with suppress(ReplyError):
            count_reply(reply, expected.most_bytes)
            read_reply(reply, expected)
        model = models[number % len(models)]
        with suppress(Exception):
            model = damaged(deepcopy(model), rng)
        usable_models([model], lambda _: initial_arrays(), "num-examples", _leave_out)
        usable_evaluations([model], "num-examples", _leave_out)


def _leave_out(reply, reason):
    assert reason


def _note(real, reply, expected):
    real.append((deepcopy(reply), expected))
    return read_reply(reply, expected)


# ---------------------------------------------------------------- one kind each


def unset_value(record):
    def damage(reply):
        proto = message_to_proto(reply)
        for item in proto.content.items:
            if item.HasField(record):
                getattr(item, record).items[0].ClearField("value")
        return message_from_proto(proto)

    return damage


def unset_record(reply):
    proto = message_to_proto(reply)
    proto.content.items.add().key = "nothing"
    return message_from_proto(proto)


def raises(reply):
    raise MemoryError("as large as it says")


def neither(reply):
    reply.__dict__["_content"] = None
    return reply


def version(value):
    def damage(reply):
        reply.content["fedma"] = ConfigRecord({"version": value, "status": "done"})
        return reply

    return damage


KINDS = {
    "config value unset": unset_value("config_record"),
    "metric value unset": unset_value("metric_record"),
    "record unset": unset_record,
    "decoder raises": raises,
    "neither content nor error": neither,
    "infinite version": version(float("inf")),
    "huge version": version(2**64 - 1),
}


@pytest.mark.parametrize("name", ["layer by layer", "FedAvg"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_decoded_drops_its_client_and_no_other(name, kind, tmp_path):
    strategy, result, damages = attack(name, KINDS[kind], tmp_path, honest=4, hostile=1)
    assert damages
    assert all(np.isfinite(array.numpy()).all() for array in result.arrays.values())
    for record in strategy.history:
        assert record.answered >= 4 or record.cohort == 1  # a second hello to the hostile one
        assert not record.dropped.keys() & {"0", "1", "2", "3"}


def test_a_reply_in_another_clients_name_is_an_error_of_its_own_sender():
    def damage(reply):
        number = int(reply.metadata.reply_to_message_id.removeprefix("message-"))
        reply.metadata.__dict__["_reply_to_message_id"] = f"message-{number - 1}"
        return reply

    strategy, _, _ = attack("layer by layer", damage, honest=4, hostile=1)
    stages = [record for record in strategy.history if record.name != "hello"]
    assert [record.answered for record in stages] == [4] * 6
    assert all("answers another message" in r.dropped["104"] for r in stages if r.dropped)
    assert stages[0].dropped


@pytest.mark.parametrize("name", ["FedMA", "FedAvg"])
def test_a_reply_larger_than_its_stage_can_need_is_refused(name):
    def damage(reply):
        reply.content["more"] = ConfigRecord({"blob": b"x" * 2**23})
        return reply

    strategy, _, _ = attack(name, damage, honest=4, hostile=1)
    first = next(record for record in strategy.history if record.name == "local")
    (reason,) = first.dropped.values()
    assert "at most" in reason
    assert "can be needed" in reason


def test_metrics_that_one_client_sends_do_not_swell_the_history():
    def damage(reply):
        if "metrics" in reply.content:
            mine = reply.content["metrics"]
            more = {f"k{number}\n": 1e308 for number in range(5000)} | {"x" * 300: 1.0}
            more |= {f"list-{n}": [0.0] * 1001 for n in range(5)} | {f"z{n}": 0 for n in range(500)}
            reply.content["metrics"] = MetricRecord({**mine, **more})
        return reply

    strategy, result, _ = attack("FedMA", damage, honest=4, hostile=1)
    for record in strategy.history:
        assert len(record.metrics) <= 110
        assert all(name.isprintable() and len(name) <= 200 for name in record.metrics)
        assert len(json.dumps(record.metrics, allow_nan=False)) < 10**4
    assert len(result.train_metrics_clientapp[1]) <= 110


def test_others_words_stay_on_one_line_of_the_log_in_evaluations_too(caplog):
    def damage(reply):
        content = RecordDict({"m": MetricRecord({"num-examples": [5] * 10**4})})
        evaluates = reply.metadata.message_type == "evaluate"
        return Message(content, reply_to=reply) if evaluates else reply

    attack("FedMA", damage, honest=4, hostile=1)
    assert all(len(r.getMessage()) < 1500 and "\n" not in r.getMessage() for r in caplog.records)
