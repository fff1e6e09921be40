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


def test_papers_numbers_of_shakespeare():
    paper = {"lr": 0.25, "momentum": 0.9, "weight-decay": 1e-4, "batch-size": 50, "num-roles": 66}

    assert {key: config("shakespeare")[key] for key in paper} == paper
