"""Checkpoints: a run that was stopped goes on as if it never had been; a bad file is refused."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedma_flwr import FedAvg, FedProx
from fedma_flwr.server import checkpoints
from fedma_flwr.server.checkpoints import CheckpointError
from tests.server.resumed_runs import GROWING, ROUNDS, assert_equal, make_grid, run, score
from tests.toy import SPEC, LayerwiseFedMA


class Killed(BaseException):
    """Stands for the end of the server's process."""


def what_happened(strategy):
    """The history without times, bytes, and the hello that a resumed run says once more."""
    own = ("bytes_down", "seconds_waiting", "seconds_matching")
    return [
        {k: v for k, v in record.to_json().items() if k not in own}
        for record in strategy.history
        if record.name != "hello"
    ]


def kill_at(server_round, stage):
    """An interceptor under which the server ends when a stage's first message goes out."""

    def intercept(message, context):
        record = message.content.get("fedma")
        if record and record["kind"] != "hello":
            place = (record["round"], record["stage"])
            assert place <= (server_round, stage)
            if place == (server_round, stage):
                raise Killed

    return intercept


@pytest.fixture(scope="module")
def wanted():
    """What a run that never stops gives, and its strategy."""
    strategy = LayerwiseFedMA(**GROWING)
    return run(strategy), strategy


@pytest.mark.parametrize("client_state", ["kept", "lost"])
@pytest.mark.parametrize("place", [(2, 0), (3, 1), (4, 2)])
def test_a_resumed_run_equals_one_that_never_stopped(tmp_path, wanted, place, client_state):
    result, uninterrupted = wanted
    assert uninterrupted.history.exchanges[-1].growth > 1.0

    options = {**GROWING, "checkpoint_dir": tmp_path}
    grid = make_grid(kill_at(*place))
    with pytest.raises(Killed):
        run(LayerwiseFedMA(**options), grid)
    if client_state == "kept":
        grid.intercept = None
    else:
        grid = make_grid()
    resumed = LayerwiseFedMA(**options, resume=True)
    assert_equal(run(resumed, grid), result)
    assert what_happened(resumed) == what_happened(uninterrupted)


def test_a_run_may_be_stopped_after_every_round(tmp_path, wanted):
    for rounds in range(1, ROUNDS + 1):
        result = run(LayerwiseFedMA(**GROWING, checkpoint_dir=tmp_path, resume=True), rounds=rounds)
    assert_equal(result, wanted[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "round-000003.safetensors",
        "round-000004.safetensors",
    ]


@pytest.mark.parametrize("make", [FedAvg, FedProx])
def test_the_baselines_resume_too(tmp_path, make):
    options = {"fraction_train": 0.5, "seed": 1}
    wanted = run(make(**options))
    run(make(**options, checkpoint_dir=tmp_path), rounds=2)
    resumed = make(**options, checkpoint_dir=tmp_path, resume=True)
    assert_equal(run(resumed), wanted)
    assert [r.round for r in resumed.history if r.name != "hello"] == [1, 2, 3, 4]


def test_rounds_that_are_done_send_nothing_and_only_the_last_is_evaluated_again(tmp_path):
    run(LayerwiseFedMA(**GROWING, checkpoint_dir=tmp_path), rounds=3)
    asked, evaluated = [], []

    def note(message, context):
        asked.append((message.metadata.message_type, message.content))

    def evaluate(server_round, arrays):
        evaluated.append(server_round)
        return score(server_round, arrays)

    strategy = LayerwiseFedMA(**GROWING, checkpoint_dir=tmp_path, resume=True)
    run(strategy, make_grid(note), rounds=3, evaluate_fn=evaluate)
    assert evaluated == [0, 3]
    kinds = {content["fedma"]["kind"] for kind, content in asked if kind == "train"}
    assert kinds == {"hello"}
    assert {content["config"]["server-round"] for kind, content in asked if kind != "train"} == {3}


def test_a_round_given_up_is_done_and_its_reason_is_kept(tmp_path):
    def fail(message, context):
        record = message.content.get("fedma", {})
        if record.get("round") == 2 and record.get("stage") == 1 and context.node_id != 100:
            raise RuntimeError("gone")

    options = {"spec": SPEC, "checkpoint_dir": tmp_path}
    wanted = run(LayerwiseFedMA(spec=SPEC), make_grid(fail), rounds=4)
    first = LayerwiseFedMA(**options)
    run(first, make_grid(fail), rounds=2)
    resumed = LayerwiseFedMA(**options, resume=True)
    assert_equal(run(resumed, rounds=4), wanted)
    assert resumed.history.given_up == first.history.given_up
    assert list(resumed.history.given_up) == [2]
    assert "min_train_nodes" in resumed.history.given_up[2]


def test_a_kill_between_writing_and_renaming_leaves_the_checkpoint_before(
    tmp_path, wanted, monkeypatch
):
    real = os.replace

    def replace(source, target):
        if "000003" in str(target):
            raise Killed
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(Killed):
        run(LayerwiseFedMA(**GROWING, checkpoint_dir=tmp_path))
    monkeypatch.setattr(os, "replace", real)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "round-000001.safetensors",
        "round-000002.safetensors",
        "round-000003.partial",
    ]
    assert_equal(run(LayerwiseFedMA(**GROWING, checkpoint_dir=tmp_path, resume=True)), wanted[0])


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def cut_header(path):
    path.write_bytes(path.read_bytes()[:5])


def empty(path):
    path.write_bytes(b"")


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


def another_file(path):
    save_file({"x": torch.zeros(3)}, path)


def another_format(path):
    with checkpoints.safe_open(path, framework="pt") as opened:
        content = json.loads(opened.metadata()["fedma-flwr"])
    tensors, text = load_file(path), json.dumps({**content, "format": 99})
    save_file(tensors, path, {"fedma-flwr": text, "sha256": checkpoints._digest(text, tensors)})


def another_kind(path):
    """The same bytes as whole numbers: the earlier digest, of bytes alone, could not tell."""
    with checkpoints.safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
    save_file({name: t.view(torch.int8) for name, t in load_file(path).items()}, path, metadata)


def another_shape(path):
    with checkpoints.safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
    save_file({name: t.reshape(-1) for name, t in load_file(path).items()}, path, metadata)


def no_model(path):
    with checkpoints.safe_open(path, framework="pt") as opened:
        text = opened.metadata()["fedma-flwr"]
    save_file({}, path, {"fedma-flwr": text, "sha256-of-all": checkpoints._full_digest(text, {})})


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "truncated"),
        (cut_header, "truncated"),
        (empty, "truncated"),
        (flip_a_bit, "damaged"),
        (another_kind, "damaged"),
        (another_shape, "damaged"),
        (no_model, "lacks what a checkpoint has"),
        (another_file, "no checkpoint of fedma-flwr"),
        (another_format, "format 99"),
    ],
)
def test_a_bad_checkpoint_is_refused_and_the_one_before_it_used(
    tmp_path, caplog, wanted, damage, reason
):
    run(LayerwiseFedMA(**GROWING, checkpoint_dir=tmp_path), rounds=3)
    damage(tmp_path / "round-000003.safetensors")
    caplog.set_level("INFO", logger="flwr")
    resumed = run(LayerwiseFedMA(**GROWING, checkpoint_dir=tmp_path, resume=True))
    assert "is refused" in caplog.text
    assert reason in caplog.text
    assert "after round 2" in caplog.text
    assert_equal(resumed, wanted[0])


def test_without_any_usable_checkpoint_the_run_does_not_begin_anew(tmp_path):
    run(LayerwiseFedMA(**GROWING, checkpoint_dir=tmp_path), rounds=2)
    for path in tmp_path.iterdir():
        truncate(path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match=r"round-000002.*round-000001.*checkpoint_dir"):
        run(LayerwiseFedMA(**GROWING, checkpoint_dir=tmp_path, resume=True))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
