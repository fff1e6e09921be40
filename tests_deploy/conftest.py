"""What the tests with real processes share."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load

from deploy.federation import Federation

APP = Path(__file__).parent / "app"


class Run:
    """A run of the app: what it is told, and what it leaves.

    Parameters
    ----------
    federation : Federation
        Where it runs.
    name : str
        Of its folder; a resumed run has that of the one that it goes on with.
    """

    def __init__(self, federation, name):
        self.federation = federation
        self.folder = federation.folder / name

    def start(self, while_running=lambda: None, **config):
        """Run to the end; return what `flwr ls` says."""
        config = {key.replace("_", "-"): value for key, value in config.items()}
        return self.federation.run(
            APP,
            {**config, "output-dir": str(self.folder)},
            log=self.folder / "run.log",
            while_running=while_running,
        )

    def exchanges(self):
        """The exchanges so far."""
        file = self.folder / "exchanges.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        return [json.loads(line) for line in lines]

    def stages(self, server_round):
        """The exchanges of a round by stage, hellos left out."""
        return {
            entry["stage"]: entry
            for entry in self.exchanges()
            if entry["round"] == server_round and entry["name"] != "hello"
        }

    def rounds(self):
        """The rounds so far."""
        file = self.folder / "result.json"
        return json.loads(file.read_text(encoding="utf-8"))["rounds"] if file.is_file() else []

    def model(self):
        """The final model, as its file has it."""
        return (self.folder / "model.safetensors").read_bytes()

    def is_finite(self):
        """Whether the final model has neither NaN nor infinity."""
        return all(bool(tensor.isfinite().all()) for tensor in load(self.model()).values())


@pytest.fixture(scope="session")
def two_nodes(tmp_path_factory):
    """A SuperLink and two SuperNodes."""
    yield from running(tmp_path_factory.mktemp("two"), 2)


@pytest.fixture(scope="session")
def undisturbed(two_nodes):
    """The run that the others are measured against: two rounds in which nothing happens."""
    run = Run(two_nodes, "undisturbed")
    run.start(min_available_nodes=len(two_nodes.nodes))
    return run


@pytest.fixture
def six_nodes(tmp_path):
    """A SuperLink and six SuperNodes."""
    yield from running(tmp_path, 6)


def running(folder, num_nodes):
    """A federation of which nothing is left in the end."""
    with Federation(folder, num_nodes) as federation:
        assert federation.processes()  # else the check below would hold whatever happens
        yield federation
    assert federation.processes() == []


@pytest.fixture
def new_run():
    """Return the class of runs."""
    return Run
