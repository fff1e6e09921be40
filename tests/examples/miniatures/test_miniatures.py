"""Flower's example apps in miniature: their habits, other code. See what changes in `apps/*.diff`."""

from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.examples.apps import MOST_CHANGED_LINES, apply, changed_lines, scores

APPS = Path(__file__).parent / "apps"
CLIENTS, ROUNDS = 4, 2
# By app: the config, and what must be installed.
CASES = {
    "quickstart_pytorch": ({"lr": 0.1}, ()),
    "fl_tabular": ({"lr": 0.01}, ()),
    "federated_vae": ({"lr": 0.01}, ()),
    "advanced_pytorch": ({"lr": 0.1}, ()),
    "custom_mods": ({"lr": 0.1}, ()),
    "flowertune_vit": ({"lr": 0.05}, ()),
    "quickstart_lightning": ({"lr": 0.01}, ("pytorch_lightning",)),
    "quickstart_huggingface": ({"lr": 0.003}, ("transformers",)),
}


def diff_of(name):
    return (APPS / f"{name}.diff").read_text(encoding="utf-8").splitlines()


def load(name, text):
    module = ModuleType(name)
    exec(compile(text, f"{name}.py", "exec"), module.__dict__)
    return module


def run(name, text, rounds):
    torch.manual_seed(0)
    module = load(name, text)
    config = {**CASES[name][0], "num-server-rounds": rounds}
    return [said["score"] for said in scores(module.app, module, module.server, config, CLIENTS)]


@pytest.mark.parametrize("name", CASES)
def test_few_lines_change(name):
    added, removed = changed_lines(diff_of(name))
    assert max(added, removed) <= MOST_CHANGED_LINES


@pytest.mark.parametrize("name", CASES)
def test_fedma_is_at_least_as_good_after_as_many_client_epochs(name):
    """Every call of the train function counts as an epoch, the head stage's too."""
    for package in CASES[name][1]:
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 'fedma-flwr[examples]'")
    text = (APPS / f"{name}.py").read_text(encoding="utf-8")
    fedavg = run(name, text, 2 * ROUNDS)
    fedma = run(name, apply(diff_of(name), text), ROUNDS)
    assert fedma[-1] > fedma[0]
    assert fedma[-1] >= fedavg[-1]
