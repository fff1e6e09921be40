"""The table, the picture and the file of results."""

import io
import json

import pytest
from rich.console import Console

from simulations.html_report import report_of_folders, report_of_rows
from simulations.report import plot, read_run, table, write_results


def text_of(runs):
    console = Console(file=io.StringIO(), width=120)
    console.print(table(runs))
    return console.file.getvalue()


def rows_of(runs):
    """Return the cells of the table's lines that hold a round."""
    lines = [line.split("│")[1:-1] for line in text_of(runs).splitlines() if "│" in line]
    return [[cell.strip() for cell in line] for line in lines]


def test_table_shows_evenly_spaced_rounds(make_run):
    runs = [
        make_run("fedma", [0.7, 0.9, 0.92], exchanges_a_round=4),
        make_run("fedavg", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]),
    ]

    assert rows_of(runs) == [
        ["FedMA", "1", "0.700", "17.3", "17.2", "4", "20", "1.00"],
        ["", "2", "0.900", "34.6", "34.5", "8", "40", "1.00"],
        ["", "3", "0.920", "51.9", "51.8", "12", "60", "1.00"],
        ["FedAvg", "3", "0.300", "51.9", "51.8", "3", "60", "1.00"],
        ["", "6", "0.600", "103.8", "103.5", "6", "120", "1.00"],
        ["", "9", "0.900", "155.7", "155.2", "9", "180", "1.00"],
    ]


@pytest.mark.parametrize(
    ("count", "shown"), [(1, [1]), (2, [1, 2]), (4, [1, 2, 3, 4]), (7, [2, 4, 6, 7])]
)
def test_table_ends_with_the_last_round(make_run, count, shown):
    rows = rows_of([make_run("fedavg", [0.5] * count)])

    assert [int(row[1]) for row in rows] == shown


def test_table_fits_a_terminal_of_80_columns(make_run):
    lines = text_of([make_run("fedprox", [0.5] * 7)]).splitlines()

    assert max(map(len, lines)) <= 80


def test_table_does_not_depend_on_the_machines_speed(make_run):
    slow, fast = (make_run("fedma", [0.7, 0.9]) for _ in range(2))
    for entry in slow["rounds"]:
        entry["seconds"] *= 7

    assert text_of([slow]) == text_of([fast])


def test_results_are_read_back_as_written(make_run, tmp_path):
    runs = [make_run("fedma", [0.7]), make_run("fedprox", [0.5])]

    write_results(runs, tmp_path / "results.json")

    assert json.loads((tmp_path / "results.json").read_text()) == {"runs": runs}


def test_run_is_read_as_written(make_run, tmp_path):
    run = make_run("fedma", [0.7, 0.9])
    (tmp_path / "result.json").write_text(json.dumps(run))

    assert read_run(tmp_path / "result.json") == run


def test_run_with_other_keys_is_refused(make_run, tmp_path):
    run = make_run("fedma", [0.7, 0.9])
    run["rounds"][1]["time"] = run["rounds"][1].pop("seconds")
    (tmp_path / "result.json").write_text(json.dumps(run))

    with pytest.raises(ValueError, match=r"round 2: missing keys \['seconds'\], unknown .*'time'"):
        read_run(tmp_path / "result.json")


def test_run_without_rounds_is_refused(make_run, tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(make_run("fedma", [])))

    with pytest.raises(ValueError, match="has no rounds"):
        read_run(tmp_path / "result.json")


def test_picture_is_a_png(make_run, tmp_path):
    runs = [make_run("fedma", [0.7, 0.9], 4), make_run("fedavg", [0.3]), make_run("fedprox", [0.3])]

    plot(runs, tmp_path / "curves.png")

    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_rows_of_an_experiment_become_a_page(make_run, tmp_path):
    """One curve a run, by its setting, method and seed."""
    rows = [
        {**entry, "run": f"r{seed}", "setting": "alpha 1", "method": "fedma", "seed": seed}
        for seed in (0, 1)
        for entry in make_run("fedma", [0.5, 0.25 + seed / 2])["rounds"]
    ]
    assert report_of_rows("Alphas", rows, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<h1>Alphas</h1>" in page
    for words in ("alpha 1 FedMA, seed 0", "alpha 1 FedMA, seed 1", "0.750"):
        assert words in page


def test_a_page_that_cannot_be_made_costs_a_line(tmp_path, capsys):
    assert not report_of_folders([tmp_path / "nothing"], tmp_path / "report.html")
    assert "report.html was not written: " in capsys.readouterr().err
    assert not report_of_rows("x", [{}], tmp_path / "report.html")
