"""The run configs that come with the tasks."""

import pytest

from fedma_flwr.tasks import TASKS, get_task
from tests.tasks.configs import DEFAULTS, ROOT, config, task_config

CLIENTS = {"cifar10": 16, "shakespeare": 66, "data_bias": 2}


def test_every_task_but_the_default_has_a_config():
    files = {path.stem for path in (ROOT / "fedma_flwr" / "tasks").glob("*.toml")}

    assert files == set(TASKS) - {DEFAULTS["task"]} == set(CLIENTS)


@pytest.mark.parametrize("name", CLIENTS)
def test_configs_are_allowed(name):
    assert set(task_config(name)) <= set(DEFAULTS)
    assert task_config(name)["task"] == name
    # Whether there is CIFAR-10 is not the question here.
    get_task(name).validate(config(name, dataset="embedded"), CLIENTS[name])


@pytest.mark.parametrize(
    ("argument", "key"),
    {
        "model": "model",
        "dataset": "dataset",
        "lr": "lr",
        "retrain_lr": "retrain-lr",
        "batch-size": "batch-size",
        "epochs": "local-epochs",
        "retrain_epochs": "retrain-epochs",
        "partition": "partition",
        "alpha": "alpha",
        "comm_type": "strategy",
        "comm_round": "num-server-rounds",
        "saved local models": "local-models",
        "saved matching": "matchings",
    }.items(),
)
def test_arguments_of_the_papers_scripts_have_a_key(argument, key):
    assert key in DEFAULTS, argument


def test_papers_numbers_of_shakespeare():
    paper = {"lr": 0.25, "momentum": 0.9, "weight-decay": 1e-4, "batch-size": 50, "num-roles": 66}

    assert {key: config("shakespeare")[key] for key in paper} == paper
