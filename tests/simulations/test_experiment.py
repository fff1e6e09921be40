"""The engine of the experiments, on settings of a second or two."""

import json
from functools import lru_cache
from pathlib import Path

import pytest

from fedma_flwr.structure import derive_spec
from fedma_flwr.tasks import get_task
from simulations import ablation, clients, compare, data_bias, local_epochs, methods, participation
from simulations.experiment import ROUNDS, Runner, main, read_rows
from simulations.plan import check, read_plan, setting

CONFIGS = Path(__file__).resolve().parents[2] / "simulations" / "configs"
EXPERIMENTS = {
    module.EXPERIMENT.name: module.EXPERIMENT
    for module in (ablation, clients, compare, data_bias, local_epochs, participation)
}
TINY = """
experiment = "{name}"
clients = 2
seeds = [0]
methods = {methods}
{options}

[rounds]
{rounds}

[config]
model = "mlp"
num-partitions = 40
partition = "homogeneous"
local-epochs = 1
retrain-epochs = 1
head-epochs-factor = 1.0
groups-per-stage = "all"
{config}
"""


@pytest.fixture(autouse=True)
def derived_once(monkeypatch):
    """Derive and prove the model's spec once for all runs: it takes seconds."""
    monkeypatch.setattr(methods, "derive_spec", _derive)


@lru_cache
def _spec(model_text):
    task = get_task("mnist")
    return derive_spec(task.build_model({"model": "mlp"}, 0), task.example_inputs())


def _derive(model, example_inputs):
    return _spec(str(model))


def write(path, name, chosen, *, options="", rounds="", config=""):
    text = TINY.format(
        name=name, methods=json.dumps(chosen), options=options, rounds=rounds, config=config
    )
    path.write_text(text, encoding="utf-8")
    return path


def refused(tmp_path, capsys, text):
    """The error that a file leads to; nothing may have been run."""
    path = tmp_path / "plan.toml"
    path.write_text(text, encoding="utf-8")
    status = main(compare.EXPERIMENT, ["--config", str(path), "--out", str(tmp_path / "out")])
    lines = capsys.readouterr().err.strip().splitlines()
    assert status == 1
    assert len(lines) == 1
    assert not (tmp_path / "out" / ROUNDS).exists()
    return lines[0]


# ---------------------------------------------------------------------- files


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_configs_are_read_and_settings_differ(path):
    name = next(name for name in EXPERIMENTS if f'experiment = "{name}"' in path.read_text())
    plan = read_plan(path, name, EXPERIMENTS[name].options)

    settings = EXPERIMENTS[name].settings(plan)

    assert len({(each.name, each.method) for each in settings}) == len(settings) > 0
    assert len(plan.seeds) >= 3
    for each in settings:
        assert each.resolve(0).keys() == methods.app_defaults().keys()


def test_every_experiment_has_a_small_config_and_one_of_the_papers_setting():
    found = {path.stem for path in CONFIGS.glob("*.toml")}

    for name in EXPERIMENTS:
        assert any(stem.startswith(name) and stem.endswith("_small") for stem in found)
        assert any(stem.startswith(name) and stem.endswith("_paper") for stem in found)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('experiment = "ablation"', "experiment is 'ablation', but this is 'compare'"),
        ('experiment = "compare"\nclient = 3', "unknown key 'client'; known are clients"),
        ('experiment = "compare"\nmethods = ["fedsgd"]', "unknown method 'fedsgd'"),
        ('experiment = "compare"\nclients = 0', "clients must be an integer of at least 1, not 0"),
        ('experiment = "compare"\n[config]\nepochs = 3', "unknown config key 'epochs'"),
        ('experiment = "compare"\n[config]\nseed = 3', "unknown config key 'seed'"),
        ('experiment = "compare"\n[config]\ndataset = "all"', "dataset must be one of embedded"),
        ('experiment = "compare"\n[config]\ntask = "svhn"', "task: unknown task 'svhn'"),
        ('experiment = "compare"\n[config]\nmatcher = "x"', "matcher must be one of bbpmap"),
        ('experiment = "compare"\nclients = 401', r"must be 1 .. 400, not 401"),
        ("experiment", "cannot be read"),
    ],
)
def test_a_wrong_file_is_one_error_and_nothing_starts(tmp_path, capsys, text, message):
    assert message in refused(tmp_path, capsys, text)


def test_missing_data_names_the_key_that_needs_no_network(tmp_path, capsys, monkeypatch):
    import flwr_datasets

    def offline(**_):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(flwr_datasets, "FederatedDataset", offline)
    text = 'experiment = "compare"\n[config]\ndataset = "full"'
    assert 'Set dataset="embedded", which needs no network' in refused(tmp_path, capsys, text)


def test_a_folder_without_the_files_is_refused(tmp_path, capsys):
    text = f'experiment = "compare"\n[config]\ndataset = "full"\ndata-dir = "{tmp_path}"'
    assert "holds no MNIST: expected dataset_dict.json" in refused(tmp_path, capsys, text)


# ---------------------------------------------------------------------- runs


def test_all_methods_are_compared_and_what_is_done_is_not_repeated(tmp_path, capsys, monkeypatch):
    chosen = list(methods.LABELS)
    rounds = "centralised = 2"
    path = write(tmp_path / "plan.toml", "compare", chosen, rounds=rounds)
    arguments = ["--config", str(path), "--out", str(tmp_path / "out")]

    assert main(compare.EXPERIMENT, arguments) == 0
    shown = capsys.readouterr().out
    rows = {(row["method"], row["round"]): row for row in read_rows(tmp_path / "out" / ROUNDS)}

    assert set(rows) == {(method, 1) for method in chosen} | {("centralised", 2)}
    # All of them start from the same local models, and each has paid for its epochs.
    once = ("fedma", "one-shot", "ensemble", "fedavg")  # a solved head costs no epoch
    assert [rows[m, 1]["client_epochs"] for m in once] == [1] * 4
    assert rows["fedma-bundled", 1]["client_epochs"] == 2
    assert rows["centralised", 2]["client_epochs"] == 2
    assert [rows[m, 1]["exchanges"] for m in ("fedma", "fedavg", "centralised")] == [2, 1, 0]
    assert rows["ensemble", 1]["growth"] == 2
    assert rows["fedma", 1]["accuracy"] > rows["fedma-bundled", 1]["accuracy"]
    assert "| ensemble of local models | 1 |" in shown
    assert (tmp_path / "out" / "table.md").read_text(encoding="utf-8") in shown
    assert (tmp_path / "out" / "plot.png").read_bytes().startswith(b"\x89PNG")

    monkeypatch.setattr(methods, "run_method", None)
    assert main(compare.EXPERIMENT, arguments) == 0
    assert capsys.readouterr().out == shown


def test_runs_that_were_cut_short_are_left_out(tmp_path):
    rows = [{"run": "a", "round": 1, "rounds": 1}, {"run": "b", "round": 1, "rounds": 2}]
    lines = [json.dumps(row) for row in rows]
    (tmp_path / ROUNDS).write_text("\n".join([*lines, '{"run": "b", "rou']), encoding="utf-8")

    assert read_rows(tmp_path / ROUNDS) == rows[:1]
    assert read_rows(tmp_path / "nothing.jsonl") == []


def run_tiny(tmp_path, name, chosen, **text):
    experiment = EXPERIMENTS[name]
    plan = read_plan(write(tmp_path / "plan.toml", name, chosen, **text), name, experiment.options)
    settings = experiment.settings(plan)
    check(settings, plan.seeds)
    rows = Runner(name, tmp_path).run(settings, plan.seeds)
    experiment.plot(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    return rows


def test_local_epochs_vary(tmp_path):
    rows = run_tiny(tmp_path, "local_epochs", ["fedavg"], options="epochs = [1, 2]")

    assert [(row["x"], row["client_epochs"]) for row in rows] == [(1, 1), (2, 2)]


def test_the_number_of_clients_varies_and_their_data_do_not(tmp_path):
    rows = run_tiny(tmp_path, "clients", ["fedavg"], options="numbers = [2, 3]")

    assert [row["clients"] for row in rows] == [2, 3]
    assert rows[1]["bytes_up"] > 1.4 * rows[0]["bytes_up"]


def test_a_part_of_the_clients_takes_part(tmp_path):
    config = "fraction-train = 0.5\nmin-train-nodes = 1"
    rows = run_tiny(tmp_path, "participation", ["fedma"], options="alphas = [0.5]", config=config)

    assert [row["setting"] for row in rows] == ["alpha 0.5"]
    assert rows[0]["bytes_up"] < 1e6  # one client's model


def test_ablation_is_made_on_the_validation_split(tmp_path):
    options = 'starts = ["own"]\nvariants = ["one-shot: no later stage"]'
    rows = run_tiny(tmp_path, "ablation", [], options=options, config="validation-share = 0.2")

    assert [(row["setting"], row["split"], row["exchanges"]) for row in rows] == [
        ("own start: one-shot: no later stage", "validation", 1)
    ]


def test_unknown_variants_are_refused(tmp_path):
    path = write(tmp_path / "plan.toml", "ablation", [], options='variants = ["none"]')
    plan = read_plan(path, "ablation", ablation.EXPERIMENT.options)

    with pytest.raises(ValueError, match="variants: unknown"):
        ablation.settings(plan)


def test_the_flower_engine_reads_what_the_run_has_written(tmp_path, make_run):
    path = write(tmp_path / "plan.toml", "compare", ["fedavg"])
    plan = read_plan(path, "compare", {})
    asked = {}

    class Flower:
        def run(self, app, config, *, num_supernodes, log, result, while_running):
            asked.update(config, clients=num_supernodes)
            result.parent.mkdir(parents=True)
            result.write_text(json.dumps(make_run("fedavg", [0.5])), encoding="utf-8")

    runner = Runner("compare", tmp_path, "flower")
    entries = runner._run(
        setting(plan, "fedavg"), 7, runner._runner(Flower(), tmp_path, print), tmp_path / "models"
    )

    assert [entry["accuracy"] for entry in entries] == [0.5]
    assert (asked["seed"], asked["clients"], asked["strategy"]) == (7, 2, "fedavg")
    assert Path(asked["output-dir"]).is_absolute()
    assert read_rows(tmp_path / ROUNDS)[0]["engine"] == "flower"


def test_local_models_are_shared_by_what_trains_alike_alone(tmp_path):
    defaults = methods.app_defaults()

    def folder(clients=3, **config):
        overrides = {key.replace("_", "-"): value for key, value in config.items()}
        return methods.local_models_folder(tmp_path, {**defaults, **overrides}, clients)

    assert folder() == folder(gamma=7.0, retrain_epochs=1) == folder(strategy="fedavg")
    assert len({folder(), folder(4), folder(seed=1), folder(lr=0.5), folder(alpha=1.0)}) == 5
    assert folder(initialisation="own") != folder()
    assert folder(strategy="fedprox") is None
    assert folder(strategy="fedavg", initialisation="own") is None
    assert folder(fraction_train=0.5) is None
