"""Checkpoints: a run that was stopped goes on as if it never had been; a bad file is refused."""

import json
import os
import shutil

import pytest
import torch
from flwr.app import MetricRecord
from safetensors.torch import load_file, save_file
from torch import nn

from fedma_flwr import FedAvg, FedProx
from fedma_flwr.matching import BBPMAP
from fedma_flwr.server import checkpoints
from fedma_flwr.server.checkpoints import Checkpoint, CheckpointError, CheckpointFolder
from fedma_flwr.server.global_model import GlobalModel
from fedma_flwr.server.history import ExchangeRecord
from fedma_flwr.structure import sequential_spec
from fedma_flwr.testing import InProcessGrid
from tests.toy import SPEC, LayerwiseFedMA, initial_arrays, make_app

CLIENTS, ROUNDS = 5, 4
GROWING = {
    "spec": SPEC,
    "matcher": BBPMAP.reference(gamma=50.0),
    "initialisation": "own",
    "fraction_train": 0.6,
    "seed": 3,
}


class Killed(BaseException):
    """Stands for the end of the server's process."""


def make_grid(intercept=None):
    return InProcessGrid(make_app(), CLIENTS, intercept=intercept)


def score(server_round, arrays):
    total = sum(float(array.numpy().sum()) for array in arrays.values())
    return MetricRecord({"round": server_round, "sum": total})


def run(strategy, grid=None, rounds=ROUNDS, evaluate_fn=score):
    grid = grid or make_grid()
    return strategy.start(grid, initial_arrays(), num_rounds=rounds, evaluate_fn=evaluate_fn)


def values(arrays):
    return {name: array.data for name, array in arrays.items()}


def assert_equal(resumed, uninterrupted):
    assert values(resumed.arrays) == values(uninterrupted.arrays)
    assert list(resumed.arrays) == list(uninterrupted.arrays)
    for kind in (
        "train_metrics_clientapp",
        "evaluate_metrics_clientapp",
        "evaluate_metrics_serverapp",
    ):
        assert getattr(resumed, kind) == getattr(uninterrupted, kind), kind


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


class Other(nn.Module):
    """Hidden layers of other widths than the toy's."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(2, 5), nn.Linear(5, 8), nn.Linear(8, 2)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"seed": 4}, "seed"),
        ({"max_growth": 3.0}, "max_growth"),
        ({"matcher": BBPMAP()}, "matcher"),
        ({"groups_per_stage": "all"}, "plan"),
        ({"retrain_config": {"lr": 0.5}}, "config_overrides"),
        ({"fraction_train": 1.0}, "fraction_train"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused_by_name(tmp_path, options, name):
    run(LayerwiseFedMA(**GROWING, checkpoint_dir=tmp_path), rounds=1)
    with pytest.raises(CheckpointError, match=f"another run: its {name} is"):
        run(LayerwiseFedMA(**{**GROWING, **options}, checkpoint_dir=tmp_path, resume=True))


def test_a_checkpoint_of_another_model_or_strategy_is_refused(tmp_path):
    run(LayerwiseFedMA(**GROWING, checkpoint_dir=tmp_path), rounds=1)
    other = LayerwiseFedMA(
        **{**GROWING, "spec": sequential_spec(Other())}, checkpoint_dir=tmp_path, resume=True
    )
    arrays = type(initial_arrays())(Other().state_dict())
    with pytest.raises(CheckpointError, match="another run: its model is"):
        other.start(make_grid(), arrays, num_rounds=2)
    with pytest.raises(CheckpointError, match="another run"):
        run(FedAvg(checkpoint_dir=tmp_path, resume=True))


def test_an_earlier_runs_checkpoints_are_not_overwritten_by_mistake(tmp_path):
    run(LayerwiseFedMA(**GROWING, checkpoint_dir=tmp_path), rounds=1)
    with pytest.raises(CheckpointError, match="resume=True"):
        run(LayerwiseFedMA(**GROWING, checkpoint_dir=tmp_path))


def test_fewer_rounds_than_are_done_are_refused(tmp_path):
    run(LayerwiseFedMA(**GROWING, checkpoint_dir=tmp_path), rounds=2)
    with pytest.raises(ValueError, match="num_rounds was 1"):
        run(LayerwiseFedMA(**GROWING, checkpoint_dir=tmp_path, resume=True), rounds=1)


def test_resume_needs_a_folder():
    with pytest.raises(ValueError, match="checkpoint_dir"):
        LayerwiseFedMA(spec=SPEC, resume=True)


def test_a_checkpoint_survives_its_file_whatever_the_clients_are_called(tmp_path):
    units = torch.tensor([2, 0, 1])
    checkpoint = Checkpoint(
        round=7,
        model=GlobalModel(
            tensors={
                "w": torch.randn(3, 2),
                "count": torch.tensor(5),
                "half": torch.ones(2).half(),
            },
            token="abc.7.2",
            # Two clients with the very same object: memory that they share is written twice.
            assignments={"../a.b": {"g": units}, "münchen": {"g": units}},
            popularity={"g": torch.tensor([2, 2, 2])},
        ),
        exchanges=[ExchangeRecord(7, 0, 1, "local", ("g",), resent=("1",), identity=0.5)],
        given_up={3: "too few"},
        train_metrics={7: MetricRecord({"loss": 0.1 + 0.2, "nan": float("nan"), "n": [1, 2]})},
    )
    folder = CheckpointFolder(tmp_path / "new" / "folder", {"a": "b"})
    folder.save(checkpoint)
    read = folder.latest()
    assert read.model.token == "abc.7.2"
    assert list(read.model.tensors) == ["w", "count", "half"]
    for name, tensor in checkpoint.model.tensors.items():
        assert torch.equal(read.model.tensors[name], tensor)
        assert read.model.tensors[name].dtype == tensor.dtype
    assert list(read.model.assignments) == ["../a.b", "münchen"]
    assert all(torch.equal(entry["g"], units) for entry in read.model.assignments.values())
    assert read.exchanges == checkpoint.exchanges
    assert read.given_up == {3: "too few"}
    assert read.train_metrics[7]["loss"] == 0.1 + 0.2
    assert read.train_metrics[7]["nan"] != read.train_metrics[7]["nan"]
    assert read.train_metrics[7]["n"] == [1, 2]


def test_a_history_that_is_too_long_for_a_header_is_kept_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "_LONGEST_TEXT", 100)
    dropped = {"0": "x" * 1000}
    written = Checkpoint(1, GlobalModel({"w": torch.ones(2)}), given_up={1: "münchen"})
    written.exchanges.append(ExchangeRecord(1, 0, 1, "local", dropped=dropped))
    folder = CheckpointFolder(tmp_path, {})
    folder.save(written)
    with checkpoints.safe_open(folder.files()[0], framework="pt") as opened:
        assert len(str(opened.metadata())) < 200
    read = folder.latest()
    assert (read.exchanges, read.given_up) == (written.exchanges, written.given_up)
    assert list(read.model.tensors) == ["w"]


def test_no_folder_and_an_empty_one_begin_with_round_1(tmp_path):
    wanted = run(LayerwiseFedMA(**GROWING), rounds=1)
    for folder in (tmp_path / "not there", tmp_path):
        result = run(LayerwiseFedMA(**GROWING, checkpoint_dir=folder, resume=True), rounds=1)
        assert_equal(result, wanted)
        shutil.rmtree(folder)
