"""Flower's example apps in miniature: their habits, other code; `apps/*.diff` is what changes.

Client epochs are those in which clients train, as in `strategy.history`: a pass that only sums up
a head's moments is none. So equally many rounds of both strategies are equally many epochs here.
Models whose head is not one linear layer, or not all of the loss, take `one_shot=True`. By default
a head would be trained in an exchange of its own, which costs epochs.
"""

import logging
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.examples.apps import MOST_CHANGED_LINES, apply, changed_lines, scores

APPS = Path(__file__).parent / "apps"
DOCS = Path(__file__).parents[3] / "docs"
CLIENTS, ROUNDS = 4, 4
ROUNDING = 1e-4  # sums in another order
# By app: the config, and what must be installed.
CASES = {
    "quickstart_pytorch": ({"lr": 0.03, "local-epochs": 3}, ()),
    "fl_tabular": ({"lr": 0.01}, ()),
    "federated_vae": ({"lr": 0.02}, ()),
    "advanced_pytorch": ({"lr": 0.1}, ()),
    "custom_mods": ({"lr": 0.1}, ()),
    "flowertune_vit": ({"lr": 0.05}, ()),
    "quickstart_lightning": ({}, ("pytorch_lightning",)),
    "quickstart_huggingface": ({"lr": 0.003}, ("transformers",)),
}


def diff_of(name):
    return (APPS / f"{name}.diff").read_text(encoding="utf-8").splitlines()


def load(name, text):
    module = ModuleType(name)
    exec(compile(text, f"{name}.py", "exec"), module.__dict__)
    return module


def run(name, text, rounds=ROUNDS, seed=0):
    """The app's score after each round, round 0 included."""
    torch.manual_seed(seed)
    module = load(name, text)
    config = {**CASES[name][0], "num-server-rounds": rounds}
    return scores(module, config, CLIENTS)


@pytest.mark.parametrize("name", CASES)
def test_few_lines_change(name):
    added, removed = changed_lines(diff_of(name))
    assert max(added, removed) <= MOST_CHANGED_LINES


def test_the_docs_say_how_many_lines_change():
    counts = {name: max(changed_lines(diff_of(name))) for name in CASES}
    most = max(counts.values())
    page = (DOCS / "from_fedavg.md").read_text(encoding="utf-8")
    words = {7: "seven", 8: "eight"}
    assert f"in at most {words[most]} changed lines, imports" in page
    # The one file's import of FedMA, fedma_mod and load_model stands in both of two.
    named = ", ".join(n.replace("_", "-") for n in CASES if counts[n] == most)
    assert f"{words[most + 1]} at most ({named})" in page


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_fedma_is_at_least_as_good_after_as_many_client_epochs(name):
    for package in CASES[name][1]:
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 'fedma-flwr[examples]'")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)  # a banner a fit
    text = (APPS / f"{name}.py").read_text(encoding="utf-8")
    fedavg = run(name, text)
    fedma = run(name, apply(diff_of(name), text))
    assert fedma[-1] > fedma[0]
    assert fedma[-1] >= fedavg[-1] - ROUNDING
