"""Following a run by the files that it writes."""

import io
import json

from rich.console import Console

from simulations.progress import Display, exchanges, rounds


def write_exchanges(folder, records, tail=""):
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "exchanges.jsonl").write_text(lines + tail)


def exchange(stage, name):
    return {"round": 1, "stage": stage, "stages": 4, "name": name}


def test_nothing_written_yet(tmp_path):
    assert exchanges(tmp_path) == []
    assert rounds(tmp_path) == []


def test_hello_and_a_half_written_line_do_not_count(tmp_path):
    write_exchanges(tmp_path, [exchange(0, "hello"), exchange(0, "local")], tail='{"round": 1, "st')

    assert [record["name"] for record in exchanges(tmp_path)] == ["local"]


def test_without_terminal_every_round_is_one_line(make_run, tmp_path):
    console = Console(file=io.StringIO(), width=40)
    run = make_run("fedma", [0.702, 0.903], exchanges_a_round=4)

    with Display({"fedma": 3}, console) as display:
        display.start("fedma")
        display.update("fedma", tmp_path)
        for count in (1, 1, 2):
            (tmp_path / "result.json").write_text(
                json.dumps({**run, "rounds": run["rounds"][:count]})
            )
            display.update("fedma", tmp_path)
        display.finish("fedma")

    assert console.file.getvalue().splitlines() == [
        "fedma: starting Flower",
        "fedma: round 1/3  accuracy 0.702  34.5 MB  4 exchanges  12 s",
        "fedma: round 2/3  accuracy 0.903  69.1 MB  8 exchanges  25 s",
    ]


def test_terminal_shows_bars_with_the_stage(make_run, tmp_path):
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    write_exchanges(tmp_path, [exchange(0, "local"), exchange(1, "retrain")])
    (tmp_path / "result.json").write_text(json.dumps(make_run("fedma", [0.702])))

    with Display({"fedma": 3, "fedavg": 9}, console) as display:
        display.start("fedma")
        display.update("fedma", tmp_path)

    shown = console.file.getvalue()
    assert "1/3" in shown
    assert "accuracy 0.702  after stage 2/4 (retrain)" in shown
    assert "0/9" in shown
    assert "round 1/3" not in shown
