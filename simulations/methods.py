"""How an experiment's methods run: federated on the shipped apps, or not federated at all."""

from __future__ import annotations

import hashlib
import json
import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch.nn import functional
from torch.utils.data import TensorDataset

from fedma_flwr import load_model
from fedma_flwr.client_app import app
from fedma_flwr.server_app import run as serve
from fedma_flwr.structure import PermutationSpec, derive_spec
from fedma_flwr.tasks import Task, default_device, get_task
from fedma_flwr.tasks.training import EVALUATION_BATCH
from fedma_flwr.testing import InProcessGrid

APP = Path(__file__).resolve().parents[1]
Config = dict[str, Any]
Entry = dict[str, Any]
Run = Callable[[Config, int], list[Entry]]

LABELS = {
    "fedma": "FedMA",
    "fedma-paper": "FedMA, the paper's plan",
    "fedma-bundled": "FedMA, one stage, trained head",
    "fedavg": "FedAvg",
    "fedprox": "FedProx",
    "one-shot": "one-shot matching",
    "ensemble": "ensemble of local models",
    "centralised": "centralised training",
    "untrained": "untrained features, solved head",
}
CONFIGS: dict[str, Config] = {
    "fedma": {"strategy": "fedma"},
    "fedma-paper": {"strategy": "fedma", "preset": "paper"},
    "fedma-bundled": {"strategy": "fedma", "groups-per-stage": "all", "head": "trained"},
    "fedavg": {"strategy": "fedavg"},
    "fedprox": {"strategy": "fedprox"},
    "one-shot": {
        "strategy": "fedma",
        "one-shot": True,
        "groups-per-stage": "1",
        "num-server-rounds": 1,
    },
    # One exchange in which clients train and send their models.
    "ensemble": {
        "strategy": "fedma",
        "one-shot": True,
        "groups-per-stage": "1",
        "matcher": "identity",
        "num-server-rounds": 1,
    },
    "centralised": {"strategy": "fedavg"},
    # What a solved head does by itself: a step so small that no weight moves.
    "untrained": {
        "strategy": "fedma",
        "lr": 1e-30,
        "local-epochs": 1,
        "num-server-rounds": 1,
    },
}
# Neither a client's data nor its first local training depend on these; whatever is not named here
# keeps local models from being shared.
NOT_LOCAL = {
    "strategy",
    "num-server-rounds",
    "output-dir",
    "checkpoint-dir",
    "resume",
    "local-models",
    "retrain-epochs",
    "retrain-lr",
    "retrain-weight-decay",
    "head-epochs-factor",
    "head-lr-factor",
    "head-weight-decay",
    "preset",
    "groups-per-stage",
    "one-shot",
    "head",
    "head-start",
    "head-fraction",
    "max-growth",
    "own-growth",
    "weighted-units",
    "averaging",
    "trimmed-share",
    "max-norm-ratio",
    "max-weight-ratio",
    "server-learning-rate",
    "matchings",
    "matcher",
    "gamma",
    "local-variance",
    "prior-variance",
    "sweeps",
    "output",
    "proximal-mu",
    "fraction-train",
    "fraction-evaluate",
    "min-train-nodes",
    "min-evaluate-nodes",
    "min-available-nodes",
    "node-timeout",
    "stage-timeout",
    "hello-timeout",
    "quorum",
}


def app_defaults() -> Config:
    """Return every config key of the shipped apps with its default."""
    text = (APP / "pyproject.toml").read_text(encoding="utf-8")
    return dict(tomllib.loads(text)["tool"]["flwr"]["app"]["config"])


@dataclass(frozen=True)
class InProcess:
    """Runs the shipped apps in this process; see `InProcessGrid`.

    Parameters
    ----------
    on_message : callable
        Called whenever a client is about to get a message.
    """

    on_message: Callable[[], None] = field(default=lambda: None)
    _specs: dict[str, PermutationSpec] = field(default_factory=dict, repr=False)

    def __call__(self, config: Config, clients: int) -> list[Entry]:
        """Run; return the output folder's rounds."""
        grid = InProcessGrid(
            app, clients, config, intercept=lambda message, context: self.on_message()
        )
        return list(serve(grid, config, self._spec(config)).result["rounds"])

    def _spec(self, config: Config) -> PermutationSpec | None:
        """The model's spec, derived once for all runs of the same model."""
        if config["strategy"] != "fedma":
            return None
        task = get_task(config["task"])
        model = task.build_model(config, 0)
        key = f"{config['task']} {model}"
        if key not in self._specs:
            self._specs[key] = derive_spec(model, task.example_inputs())
        return self._specs[key]


def digest(values: Mapping[str, Any]) -> str:
    """Return a short name for a config: equal configs have equal names."""
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def local_models_folder(base: Path, config: Config, clients: int) -> Path | None:
    """Where the clients' local models of the first round are, which methods can share.

    Parameters
    ----------
    base : Path
        Folder of all local models.
    config : dict
        A run config.
    clients : int
        Number of clients.

    Returns
    -------
    Path or None
        None if they cannot be shared: FedProx trains others, FedAvg knows no own
        initialisations, and a sampled cohort is a part only.
    """
    alike = config["strategy"] == "fedma" or (
        config["strategy"] == "fedavg" and config["initialisation"] == "common"
    )
    if not alike or config["fraction-train"] != 1.0:
        return None
    local = {key: value for key, value in config.items() if key not in NOT_LOCAL}
    return base / digest({**local, "clients": clients})


def run_method(method: str, config: Config, clients: int, run: Run, models: Path) -> list[Entry]:
    """Run one method with one seed.

    Parameters
    ----------
    method : str
        A key of `LABELS`.
    config : dict
        The whole run config, `CONFIGS` of the method included.
    clients : int
        Number of clients.
    run : callable
        The engine: runs the shipped apps with a config and a number of clients.
    models : Path
        Folder of all local models.

    Returns
    -------
    list of dict
        One entry a round, as in `rounds` of ``result.json``; all counters are cumulative. Of
        ``centralised`` a round is `local-epochs` epochs on the union of the clients' data.
    """
    if method == "centralised":
        return _centralised(config, clients)
    folder = local_models_folder(models, config, clients)
    rounds = _from_local_models(config, clients, run, folder)
    if method == "ensemble":
        if folder is None:
            raise ValueError("fraction-train must be 1.0 for an ensemble of all local models")
        accuracy, loss = _ensemble(config, clients, folder)
        rounds = [{**rounds[0], "accuracy": accuracy, "loss": loss, "growth": float(clients)}]
    return rounds


def _from_local_models(config: Config, clients: int, run: Run, folder: Path | None) -> list[Entry]:
    """Run; where local models were there already, count the epochs that they took."""
    if folder is None:
        return run(config, clients)
    there = sum((folder / f"client-{i}.safetensors").is_file() for i in range(clients))
    rounds = run({**config, "local-models": str(folder)}, clients)
    missing = config["local-epochs"] * there / clients
    return [{**entry, "client_epochs": entry["client_epochs"] + missing} for entry in rounds]


@torch.no_grad()
def _ensemble(config: Config, clients: int, folder: Path) -> tuple[float, float]:
    """Accuracy and loss of the mean of the local models' softmax."""
    task = get_task(config["task"])
    inputs, labels = task.load_test(config).tensors
    total, device = torch.zeros(len(labels), task.num_classes), default_device()
    for client in range(clients):
        saved = safetensors.torch.load_file(folder / f"client-{client}.safetensors")
        model = load_model(task.build_model(config, 0), saved).to(device).eval()
        batches = (model(batch.to(device)) for batch in inputs.split(EVALUATION_BATCH))
        total += torch.cat([functional.softmax(logits, dim=1) for logits in batches]).cpu()
    mean = total / clients
    accuracy = (mean.argmax(dim=1) == labels).double().mean().item()
    return accuracy, functional.nll_loss(mean.clamp_min(1e-12).log(), labels).item()


def _centralised(config: Config, clients: int) -> list[Entry]:
    """Train one model on the union of the clients' data."""
    task = get_task(config["task"])
    model = task.build_model(config, config["seed"])
    data, test = _union(task, config, clients), task.load_test(config)
    entries: list[Entry] = []
    start = time.monotonic()
    for number in range(1, config["num-server-rounds"] + 1):
        task.train(
            model,
            data,
            epochs=config["local-epochs"],
            lr=config["lr"],
            momentum=config["momentum"],
            weight_decay=config["weight-decay"],
            batch_size=config["batch-size"],
            seed=int(np.random.SeedSequence([config["seed"], number]).generate_state(1)[0]),
            augment=task.augmentation(config),
        )
        loss, accuracy = task.evaluate(model, test)
        entry = {"round": number, "given-up": None, "accuracy": accuracy, "loss": loss}
        costs = {"bytes_up": 0, "bytes_down": 0, "exchanges": 0}
        costs["client_epochs"] = config["local-epochs"] * number
        seconds = round(time.monotonic() - start, 3)
        entries.append({**entry, **costs, "seconds": seconds, "widths": {}, "growth": 1.0})
    return entries


def _union(task: Task, config: Config, clients: int) -> TensorDataset:
    partitions = max(clients, config["num-partitions"])
    parts = [task.load_partition(config, i, partitions).tensors for i in range(clients)]
    return TensorDataset(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
