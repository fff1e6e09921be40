"""What a run leaves behind, while it goes on and when it is resumed."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from fedma_flwr.protocol import to_arrays
from fedma_flwr.server import output_folder
from fedma_flwr.server.history import ExchangeRecord, History
from fedma_flwr.server.output_folder import OutputFolder
from tests.toy import SPEC, initial_arrays


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(output_folder, "time", clock)
    return clock


def history(*rounds, given_up=None):
    records = [ExchangeRecord(n, 0, 1, "local", bytes_up=10 * n, epochs=2.0) for n in rounds]
    return History(exchanges=records, given_up=given_up or {})


def grown():
    """The toy's model with three more units in its first layer."""
    tensors = {name: torch.from_numpy(a.numpy()) for name, a in initial_arrays().items()}
    assignments = {"a": torch.arange(12)}
    return to_arrays(SPEC.expand(tensors, assignments, {"a": 15}))


def result(path):
    return json.loads((path / "result.json").read_text())


def lines(path):
    return [
        json.loads(line)["round"]
        for line in (path / "exchanges.jsonl").read_text().split("\n")
        if line
    ]


def test_a_run_is_told_round_by_round(tmp_path, clock):
    folder = OutputFolder(tmp_path / "new" / "run", SPEC, {"strategy": "fedma"})
    path = tmp_path / "new" / "run"
    folder.add_round(0, initial_arrays(), history(), loss=9.0, accuracy=0.1)
    assert list(path.iterdir()) == []  # of the initial model only its size is noted
    clock.now = 103.2504  # milliseconds are enough
    folder.add_round(1, grown(), history(1), loss=0.5, accuracy=0.75)
    folder.add_round(2, grown(), history(1, 2, given_up={2: "too few"}), loss=0.4, accuracy=0.8)
    first, second = result(path)["rounds"]
    assert result(path)["strategy"] == "fedma"
    # 12 x 2 + 12 + 8 x 12 + 8 + 2 x 8 + 2 numbers, and 3 x (2 + 1 + 8) more.
    assert first.pop("growth") == (158 + 33) / 158
    assert first == {
        "round": 1,
        "given-up": None,
        "accuracy": 0.75,
        "loss": 0.5,
        "bytes_up": 10,
        "bytes_down": 0,
        "exchanges": 1,
        "client_epochs": 2.0,
        "seconds": 3.25,
        "widths": {"a": 15, "b": 8},
    }
    assert (second["given-up"], second["exchanges"], second["bytes_up"]) == ("too few", 2, 30)


def test_an_earlier_runs_files_do_not_pass_for_this_ones(tmp_path):
    for name in ("exchanges.jsonl", "result.json", "model.safetensors", "mine.txt"):
        (tmp_path / name).write_text("old")
    folder = OutputFolder(tmp_path, SPEC, {})
    assert len(list(tmp_path.iterdir())) == 4  # the run may yet be refused
    folder.add_round(0, initial_arrays(), History(), loss=0.0, accuracy=0.0)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_exchanges_are_appended_and_the_model_can_be_loaded(tmp_path):
    folder = OutputFolder(tmp_path, None, {})
    for record in history(1, 2):
        folder.add_exchange(record)
    assert lines(tmp_path) == [1, 2]
    folder.add_model(initial_arrays())
    tensors = load_file(tmp_path / "model.safetensors")
    assert tensors.keys() == dict(initial_arrays()).keys()
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".jsonl", ".safetensors"]


def test_without_a_spec_there_are_no_widths_and_without_a_folder_no_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = OutputFolder(None, None, {})
    folder.add_round(0, initial_arrays(), history(), loss=1.0, accuracy=0.0)
    folder.add_round(1, initial_arrays(), history(1), loss=1.0, accuracy=0.0)
    folder.add_exchange(ExchangeRecord(1, 0, 1, "local"))
    folder.add_model(initial_arrays())
    assert folder.result["rounds"][0]["widths"] == {}
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_run_goes_on_in_the_folder(tmp_path, clock):
    """Round 2 is done again; time goes on from where the first run had noted it last."""
    first = OutputFolder(tmp_path, SPEC, {})
    first.add_round(0, initial_arrays(), history(), loss=9.0, accuracy=0.1)
    for number in (1, 2, 3):
        clock.now += 5.0
        first.add_round(number, grown(), history(), loss=0.5, accuracy=0.5)
        first.add_exchange(ExchangeRecord(number, 0, 1, "local"))
    clock.now = 1000.0
    again = OutputFolder(tmp_path, SPEC, {}, resume=True)
    assert lines(tmp_path) == [1, 2, 3]
    again.add_round(0, initial_arrays(), history(), loss=9.0, accuracy=0.1)
    again.add_exchange(ExchangeRecord(2, 0, 1, "local"))
    clock.now = 1002.0
    again.add_round(2, grown(), history(1, 2), loss=0.25, accuracy=0.5)
    again.add_exchange(ExchangeRecord(3, 0, 1, "local"))
    again.add_round(3, grown(), history(1, 2, 3), loss=0.125, accuracy=0.5)
    assert [entry["round"] for entry in result(tmp_path)["rounds"]] == [1, 2, 3]
    assert [entry["loss"] for entry in result(tmp_path)["rounds"]] == [0.5, 0.25, 0.125]
    assert [entry["seconds"] for entry in result(tmp_path)["rounds"]] == [5.0, 17.0, 17.0]
    assert lines(tmp_path) == [1, 2, 3]


def test_a_resumed_run_may_find_nothing(tmp_path):
    OutputFolder(tmp_path, SPEC, {}, resume=True)
    (tmp_path / "result.json").write_text(json.dumps({"rounds": []}))
    folder = OutputFolder(tmp_path, SPEC, {}, resume=True)
    assert folder.result["rounds"] == []
