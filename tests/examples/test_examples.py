"""The apps under `examples/`, with their own configs, on the in-process grid."""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from fedma_flwr import FedMA
from fedma_flwr.testing import InProcessGrid
from tests.examples.apps import config_of, run_folder

EXAMPLES = Path(__file__).parents[2] / "examples"
CLIENTS = 4


@pytest.mark.parametrize(
    ("folder", "package", "needs"),
    [
        ("lightning", "lightning_digits", "pytorch_lightning"),
        ("text", "role_text", "transformers"),
    ],
)
def test_an_app_learns(folder, package, needs):
    if find_spec(needs) is None:
        pytest.skip(f"{needs} is not installed: see examples/{folder}/pyproject.toml")
    said = run_folder(EXAMPLES / folder, package, CLIENTS, num_server_rounds=2)
    assert len(said) == 3
    assert said[-1]["accuracy"] > said[0]["accuracy"] + 0.03


def test_personal_norms_are_evaluated_by_their_clients(monkeypatch):
    results = []

    class Watched(FedMA):
        def start(self, *args, **kwargs):
            results.append(super().start(*args, **kwargs))
            return results[-1]

    folder = EXAMPLES / "personal"
    monkeypatch.syspath_prepend(str(folder))
    client = import_module("personal_norms.client_app")
    server = import_module("personal_norms.server_app")
    monkeypatch.setattr(server, "FedMA", Watched)
    config = config_of(folder)
    server.app(InProcessGrid(client.app, CLIENTS, config), Context(1, 0, {}, RecordDict(), config))

    (result,) = results
    accuracies = [m["accuracy"] for m in result.evaluate_metrics_clientapp.values()]
    assert accuracies[-1] > 0.5
    assert accuracies[-1] >= accuracies[0]
    assert "personal_norms" in sys.modules
