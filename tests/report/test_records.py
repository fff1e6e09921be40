"""What a run keeps for its report, and what is said of records that cannot be read."""

import json
import sys

import pytest
import torch
from flwr.serverapp.exception import AggregationError

from fedma_flwr.report import ReportError, read_run, runs_in
from fedma_flwr.report.__main__ import main
from tests.report.conftest import run


def broken(_message, _context, _client):
    raise RuntimeError("no picture today")


def test_a_run_with_an_output_folder_leaves_records_and_a_report(folder):
    names = {path.name for path in (folder / "fedma").iterdir()}
    assert names == {
        "exchanges.jsonl",
        "result.json",
        "settings.json",
        "model.safetensors",
        "report.html",
    }
    found = read_run(folder / "fedma")
    assert [entry["round"] for entry in found.rounds] == [1, 2]
    assert found.about["strategy"] == "FedMA"
    assert found.settings["groups"] == {"conv": 4, "hidden": 8}
    assert [stage["name"] for stage in found.settings["plan"]] == ["local", "head"]
    assert torch.__version__.startswith(found.settings["versions"]["torch"])
    metrics = found.rounds[1]["metrics"]
    assert found.curve("accuracy")[1] == metrics["server"]["accuracy"]
    assert metrics["training"]["epochs"] == 3.0


def test_records_say_who_took_part_and_what_matched_units_are_like(folder):
    local, head, *_ = read_run(folder / "fedma").stages
    assert local["took_part"] == head["took_part"] == ["0", "1", "2", "3"]
    assert set(local["similarity"]) == {"conv", "hidden"}
    assert all(-1 <= value <= 1 for values in local["similarity"].values() for value in values)
    assert local["filters"]["shape"] == [1, 3, 3]
    assert {len(v) for unit in local["filters"]["units"] for v in unit["values"]} == {9}
    assert [len(rows) for rows in head["head_scores"].values()] == [3, 3]
    assert "filters" not in json.dumps(head["metrics"])


def test_without_an_output_folder_no_client_is_shown_in_the_records(tmp_path):
    strategy = run(None, rounds=1, clients=2)
    assert all(not record.filters and not record.head_scores for record in strategy.history)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_leaves_its_report_too(tmp_path):
    """It says why: nobody's reply could be used."""
    with pytest.raises(AggregationError):
        run(tmp_path, rounds=1, clients=2, client=broken)
    assert "no picture today" in (tmp_path / "report.html").read_text()


def test_a_run_that_never_begins_leaves_none(tmp_path):
    few = {"min_available_nodes": 3, "node_timeout": 1e-9}
    with pytest.raises(AggregationError, match="Start more SuperNodes"):
        run(tmp_path, rounds=1, clients=2, **few)
    assert not (tmp_path / "report.html").exists()


def test_a_report_that_cannot_be_made_ends_no_run(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    caplog.set_level("WARNING", logger="flwr")
    run(tmp_path, fedavg=True, rounds=1, clients=2)
    assert (tmp_path / "model.safetensors").exists()
    assert not (tmp_path / "report.html").exists()
    assert 'pip install "fedma-flwr[report]"' in caplog.text


def test_curves_take_what_there_is(tmp_path):
    entry = {"round": 1, "metrics": {"clients": {"eval_acc": 0.5, "eval_loss": 2.0}}}
    server = {"round": 2, "metrics": {"server": {"accuracy": 0.75}, "clients": {"eval_acc": 0.1}}}
    (tmp_path / "result.json").write_text(json.dumps({"rounds": [entry, server]}))
    found = read_run(tmp_path)
    assert found.curve("accuracy") == [0.5, 0.75]
    assert found.curve("loss")[0] == 2.0
    assert found.exchanges == []


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("result.json", "{", "result.json cannot be read"),
        ("result.json", "[1]", "is no JSON object"),
        ("result.json", '{"rounds": 3}', "'rounds' must be a list"),
        ("result.json", '{"rounds": [{"round": "x"}]}', "round 1 of the list: 'round' must be int"),
        ("result.json", '{"rounds": [{"round": 1, "bytes_up": NaN}]}', "'bytes_up' must be"),
        ("exchanges.jsonl", "no\n", "line 1 is no JSON"),
        ("exchanges.jsonl", '{"round": 1, "stage": 0}\n', "line 1: 'name' must be str"),
        (
            "exchanges.jsonl",
            '{"round": 1, "stage": 0, "name": "x", "dropped": [1]}\n',
            "'dropped' must be dict",
        ),
        ("exchanges.jsonl", "[" * 100_000 + "\n", "line 1 is no JSON"),
    ],
)
def test_records_that_cannot_be_read_are_named(tmp_path, capsys, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(ReportError, match=words.replace("[", r"\[")):
        read_run(tmp_path)
    assert main([str(tmp_path)]) == 1
    assert "no report: " in capsys.readouterr().err


def test_a_folder_without_records_is_refused_with_the_remedy(tmp_path, capsys):
    with pytest.raises(ReportError, match=r"no records of a run .*output_dir="):
        runs_in([tmp_path])
    assert main([str(tmp_path / "not-there")]) == 1
    assert "not-there is no folder" in capsys.readouterr().err


def test_a_line_that_was_cut_short_is_left_out(tmp_path, folder):
    text = (folder / "fedma" / "exchanges.jsonl").read_text()
    (tmp_path / "exchanges.jsonl").write_text(text + '{"round": 9, "sta')
    assert len(read_run(tmp_path).exchanges) == text.count("\n")


def test_folders_of_one_name_are_told_apart(tmp_path):
    for name in ("a/run", "b/run"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "result.json").write_text('{"rounds": []}')
    found = runs_in([tmp_path / "a", tmp_path / "b"])
    assert [each.name for each in found] == ["a/run", "b/run"]


def test_a_resumed_run_goes_on_in_its_folder(tmp_path):
    """Round 2 is done by the second run; the first one's rounds and exchanges stay."""
    options = {"checkpoint_dir": tmp_path / "checkpoints", "clients": 2, "fedavg": True}
    run(tmp_path / "run", rounds=1, **options)
    first = read_run(tmp_path / "run")
    run(tmp_path / "run", rounds=2, resume=True, **options)
    both = read_run(tmp_path / "run")
    assert [entry["round"] for entry in both.rounds] == [1, 2]
    assert both.rounds[0]["bytes_up"] == first.rounds[0]["bytes_up"]
    assert both.rounds[0]["metrics"] == first.rounds[0]["metrics"]
    assert [entry["round"] for entry in both.stages] == [1, 2]
    assert "accuracy" in both.rounds[1]["metrics"]["server"]


def test_a_run_anew_does_not_keep_the_last_ones_rounds(tmp_path):
    for rounds in (2, 1):
        run(tmp_path, rounds=rounds, clients=2, fedavg=True)
    found = read_run(tmp_path)
    assert len(found.rounds) == len(found.stages) == 1
