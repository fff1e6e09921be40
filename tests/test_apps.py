"""The shipped apps on an in-process grid: LeNet on real digits, in as few steps as possible."""

import json
import tomllib
from pathlib import Path

import pytest
import safetensors.torch

from fedma_flwr import load_model
from fedma_flwr.client_app import app
from fedma_flwr.matching import BBPMAP
from fedma_flwr.server_app import run
from fedma_flwr.strategy_from_config import MATCHERS, make_matcher
from fedma_flwr.tasks import get_task
from fedma_flwr.testing import InProcessGrid

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
DEFAULTS = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["tool"]["flwr"]["app"]["config"]
TINY = {
    "partition": "homogeneous",
    "num-server-rounds": 1,
    "local-epochs": 1,
    "retrain-epochs": 1,
    "head-epochs-factor": 1.0,
    "batch-size": 64,
}
CLIENTS = 20  # 200 digits each


def start(output=None, clients=CLIENTS, **overrides):
    config = {**DEFAULTS, **TINY, "fraction-train": 0.1}
    config.update({key.replace("_", "-"): value for key, value in overrides.items()})
    config["output-dir"] = str(output or "")
    grid = InProcessGrid(app, clients, config)
    return run(grid, config)


def test_a_run_leaves_its_result_its_exchanges_and_its_model(tmp_path):
    start(tmp_path, num_server_rounds=2, fraction_evaluate=0.1)
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert (result["strategy"], result["task"], result["seed"]) == ("fedma", "mnist", 0)
    assert "output-dir" not in result["config"]
    assert [entry["round"] for entry in result["rounds"]] == [1, 2]
    first, last = result["rounds"]
    assert 0.0 <= first["accuracy"] <= 1.0
    assert (first["exchanges"], last["exchanges"]) == (2, 4)
    assert last["client_epochs"] == 2
    assert last["growth"] >= 1.0
    assert set(last["widths"]) == {"conv1", "conv2", "fc1"}
    lines = (tmp_path / "exchanges.jsonl").read_text(encoding="utf-8").splitlines()
    exchanges = [json.loads(line) for line in lines]
    assert sum(entry["bytes_down"] for entry in exchanges) == last["bytes_down"]
    saved = safetensors.torch.load_file(tmp_path / "model.safetensors")
    task = get_task("mnist")
    model = load_model(task.build_model(DEFAULTS, 0), saved)
    _, accuracy = task.evaluate(model, task.load_test(DEFAULTS))
    assert accuracy == last["accuracy"]


@pytest.mark.long
def test_a_resumed_run_leaves_what_an_uninterrupted_one_leaves(tmp_path):
    def leaves(name):
        rounds = json.loads((tmp_path / name / "result.json").read_text(encoding="utf-8"))["rounds"]
        lines = (tmp_path / name / "exchanges.jsonl").read_text(encoding="utf-8").splitlines()
        steps = [json.loads(line) for line in lines]
        model = (tmp_path / name / "model.safetensors").read_bytes()
        same = ("round", "given-up", "accuracy", "loss", "client_epochs", "widths", "growth")
        return (
            [{key: entry[key] for key in same} for entry in rounds],
            [(s["round"], s["stage"], s["objective"]) for s in steps if s["name"] != "hello"],
            model,
        )

    options = {"groups_per_stage": "all", "fraction_train": 0.15}
    start(tmp_path / "whole", num_server_rounds=3, **options)
    options["checkpoint_dir"] = str(tmp_path / "checkpoints")
    start(tmp_path / "parts", num_server_rounds=2, **options)
    start(tmp_path / "parts", num_server_rounds=3, resume=True, **options)
    assert leaves("parts") == leaves("whole")


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox"])
def test_the_baselines_run_from_the_same_app(strategy):
    (entry,) = start(strategy=strategy).result["rounds"]
    assert entry["exchanges"] == 1
    assert entry["client_epochs"] == 1
    assert entry["growth"] == 1.0


def test_one_shot_is_one_exchange_a_round():
    (entry,) = start(one_shot=True).result["rounds"]
    assert (entry["exchanges"], entry["client_epochs"]) == (1, 1)


def test_only_fedprox_trains_with_the_proximal_term():
    def loss(**options):
        return start(**options).result["rounds"][0]["loss"]

    plain = loss(strategy="fedavg", proximal_mu=0.0)
    assert loss(strategy="fedavg", proximal_mu=5.0) == plain
    assert loss(strategy="fedprox", proximal_mu=0.0) == plain
    assert loss(strategy="fedprox", proximal_mu=5.0) != plain
    assert loss(strategy="fedma", proximal_mu=0.0) == loss(strategy="fedma", proximal_mu=5.0)


def test_equal_seeds_give_equal_rounds():
    def rounds():
        return [
            {k: v for k, v in entry.items() if k != "seconds"}
            for entry in start(seed=3, initialisation="own", groups_per_stage="all").result[
                "rounds"
            ]
        ]

    assert rounds() == rounds()


def test_weights_drawn_from_the_seed_are_the_common_ones_without_their_bytes():
    drawn, sent = (
        start(initialisation=value, groups_per_stage="all").result["rounds"][0]
        for value in ("seed", "common")
    )
    assert (drawn["accuracy"], drawn["loss"]) == (sent["accuracy"], sent["loss"])
    assert drawn["bytes_up"] == sent["bytes_up"]
    config = {**DEFAULTS, **TINY}
    model = get_task(config["task"]).build_model(config, 0)
    of_models = 2 * sum(4 * parameter.numel() for parameter in model.parameters())
    assert sent["bytes_down"] - drawn["bytes_down"] == pytest.approx(of_models, rel=0.02)


def test_local_models_and_matchings_are_saved_once_and_then_started_from(tmp_path, monkeypatch):
    models, matchings = tmp_path / "models", tmp_path / "matchings"
    options = {"local_models": str(models), "matchings": str(matchings), "initialisation": "own"}
    first = start(**options).result["rounds"][0]
    files = sorted(path.name for path in models.iterdir())
    assert len(files) == 2
    assert files[0].startswith("client-")
    assert [path.name for path in matchings.iterdir()] == ["round-000001.json"]

    def match(self, units, *, weights=None, max_width=None, seed=0):
        raise AssertionError("nobody is to match again")

    monkeypatch.setattr(BBPMAP, "match", match)
    again = start(**options).result["rounds"][0]
    assert again["client_epochs"] == first["client_epochs"] - 1  # local training was left out
    assert again["accuracy"] == first["accuracy"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("strategy", "fedsgd"),
        ("task", "imagenet"),
        ("model", "vgg9"),
        ("partition", "natural"),
        ("augment", 1),
        ("num-server-rounds", 0),
        ("gamma", 0.0),
        ("alpha", 0.0),
        ("alpha", -1.0),
        ("partition", "sorted"),
        ("dataset", "nothing"),
        ("matcher", "hungarian"),
        ("groups-per-stage", "none"),
        ("groups-per-stage", True),
        ("one-shot", "yes"),
        ("initialisation", "zero"),
        ("max-growth", 0.0),
        ("output-dir", "outputs"),
        ("checkpoint-dir", "outputs"),
        ("matchings", "outputs"),
        ("resume", "yes"),
        ("resume", True),
        ("local-epochs", 0),
        ("proximal-mu", -1.0),
    ],
)
def test_bad_values_are_refused_before_the_first_exchange(key, value):
    asked = []
    config = {**DEFAULTS, **TINY, "partition": "dirichlet", key: value}
    if key == "proximal-mu":
        config["strategy"] = "fedprox"
    grid = InProcessGrid(app, 3, config, intercept=lambda message, _: asked.append(message))
    with pytest.raises(ValueError, match=key.replace("-", "[-_]")):
        run(grid, config)
    assert asked == []


def test_more_clients_than_the_data_can_feed_are_refused():
    with pytest.raises(ValueError, match="num-partitions"):
        start(clients=401)


def test_a_supernode_without_its_share_of_the_data_is_told_how_to_start():
    config = {**DEFAULTS, **TINY}
    grid = InProcessGrid(app, 2, config)
    for context in grid.contexts.values():
        context.node_config.clear()
    with pytest.raises(Exception, match=r"--node-config"):
        run(grid, config)


@pytest.mark.parametrize("name", MATCHERS)
def test_every_matcher_can_be_made(name):
    make_matcher({**DEFAULTS, "matcher": name})


def test_a_run_that_is_refused_keeps_what_an_earlier_one_has_left(tmp_path):
    start(tmp_path)
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    with pytest.raises(ValueError, match="max-growth"):
        start(tmp_path, max_growth=0.5)

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept
    start(tmp_path, seed=1)
    assert (tmp_path / "result.json").read_bytes() != kept["result.json"]
    assert len((tmp_path / "exchanges.jsonl").read_text().splitlines()) == len(
        kept["exchanges.jsonl"].decode().splitlines()
    )
