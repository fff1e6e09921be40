"""Tables of an experiment's rows, worked out by hand."""

import pytest

from simulations.summary import grouped, markdown, mean_std, plot_against, reaching, within


def run(method, seed, accuracies, *, setting="", x=None):
    return [
        {
            "setting": setting,
            "method": method,
            "seed": seed,
            "run": f"{setting}{method}{seed}",
            "x": x,
            "split": "test",
            "engine": "in-process",
            "round": number,
            "accuracy": accuracy,
            "exchanges": 4 * number,
            "bytes_up": 1_000_000 * number,
            "bytes_down": 2_000_000 * number,
            "client_epochs": 10.0 * number,
            "growth": 1.5,
        }
        for number, accuracy in enumerate(accuracies, start=1)
    ]


ROWS = run("fedma", 0, [0.5, 0.9]) + run("fedma", 1, [0.7, 0.6]) + run("fedavg", 0, [0.4])


def test_rows_are_grouped_by_setting_and_method():
    groups = grouped(ROWS)

    assert {key: [len(run) for run in runs] for key, runs in groups.items()} == {
        ("", "fedma"): [2, 2],
        ("", "fedavg"): [1],
    }


@pytest.mark.parametrize(
    ("values", "text"), [([], "-"), ([0.5], "0.500"), ([0.5, 0.7], "0.600 ± 0.141")]
)
def test_mean_and_standard_deviation(values, text):
    assert mean_std(values) == text


def test_the_first_round_that_reaches_a_target():
    assert reaching(ROWS[:2], 0.5)["round"] == 1
    assert reaching(ROWS[:2], 0.8)["round"] == 2
    assert reaching(ROWS[:2], 0.95) is None


def test_tables():
    text = markdown("Two methods", ROWS, 0.65)

    assert text.splitlines()[0] == (
        "Two methods. Test accuracy, mean ± standard deviation over the seeds; run on the "
        "in-process grid."
    )
    # accuracy at the end 0.9 and 0.6, best 0.9 and 0.7, worst fall 0.7 - 0.6
    cells = "2 | 0.750 ± 0.212 | 0.800 ± 0.141 | 0.100 | 2 | 8 | 6 | 20 | 1.50"
    assert f"| FedMA | {cells} |" in text
    assert "| FedMA | 0.600 ± 0.141 | 0.750 ± 0.212 |" in text
    assert "| FedAvg | 0.400 | - |" in text
    # seed 0 after two rounds, seed 1 after one
    assert "| FedMA | 2 of 2 | 1.5 ± 0.7 | 6.0 ± 2.8 | 4.5 ± 2.1 | 15.0 ± 7.1 |" in text
    assert "| FedAvg | 0 of 1 | - | - | - | - |" in text
    assert "setting" not in text  # there is one


def test_accuracy_at_equal_bytes():
    rows = run("fedma", 0, [0.5, 0.9]) + run("fedavg", 0, [0.4, 0.6, 0.7, 0.8])

    text = markdown("Two methods", rows)  # 6 and 12 MB; a round is 3 MB

    lines = text[text.index("At equal bytes") :].splitlines()[4:]
    assert lines == [
        "| 3.0 | FedMA | 0.500 | 0.500 |",
        "| 3.0 | FedAvg | 0.400 | 0.400 |",
        "| 4.5 | FedMA | 0.500 | 0.500 |",
        "| 4.5 | FedAvg | 0.400 | 0.400 |",
        "| 6.0 | FedMA | 0.900 | 0.700 |",
        "| 6.0 | FedAvg | 0.600 | 0.500 |",
    ]
    assert within(rows[:2], 2.9) == []


def test_settings_have_a_column_where_there_are_several(tmp_path):
    rows = run("fedma", 0, [0.5], setting="E = 1", x=1) + run(
        "fedma", 0, [0.6], setting="E = 2", x=2
    )

    assert "| E = 2 | FedMA | 1 | 0.600 |" in markdown("Epochs", rows)
    plot_against("epochs")(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
