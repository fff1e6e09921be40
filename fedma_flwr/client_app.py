"""The ClientApp of the shipped tasks. One app serves FedMA, FedAvg and FedProx."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fedma_flwr.client import Stage, class_counts, load_model, proximal_term
from fedma_flwr.client_moments import head_moments
from fedma_flwr.mod import fedma_mod
from fedma_flwr.protocol import (
    ARRAYS_KEY,
    CLASS_COUNTS_KEY,
    CONFIG_KEY,
    EPOCHS_CONFIG_KEY,
    EPOCHS_KEY,
    LEARNING_RATE_KEY,
    METRICS_KEY,
    NUM_EXAMPLES_KEY,
    PARTITION_KEY,
    PARTITIONS_KEY,
    PROXIMAL_MU_KEY,
)
from fedma_flwr.structure.stages import LOCAL
from fedma_flwr.tasks import RunConfig, Task, default_device, get_task
from fedma_flwr.tasks.config import SEED, WEIGHT_DECAY_KEY, integer, number, text
from fedma_flwr.tasks.local_models import local_models_folder

app = ClientApp(mods=[fedma_mod])
_PASS_BATCH = 500  # examples in a forward pass without gradients


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train what is not settled, and tell the server what it needs to weigh the result."""
    task = get_task(text(context.run_config, "task"))
    config = _config(message, context)
    options = _training_options(config)
    dataset = _partition(task, context)
    stage = Stage.from_message(message)
    model = load_model(_initial_model(task, context), message)
    saved = _local_model(context, stage)
    if stage.solves_head:
        return _moments(message, model, dataset, task.num_classes)
    if saved is not None and saved.is_file():
        loss, epochs = _take_saved(task, model, saved, dataset), 0
    else:
        options["augment"] = task.augmentation(context.run_config)
        options["seed"] = _client_seed(context, stage.round, stage.index)
        penalty = _penalty(config, model)
        loss, epochs = task.train(model, dataset, penalty=penalty, **options), options["epochs"]
        if saved is not None:
            _save(model, saved)
    metrics = {**_counts(dataset, task.num_classes), EPOCHS_KEY: epochs, "train-loss": loss}
    arrays = ArrayRecord(model.cpu().state_dict())
    content = RecordDict({ARRAYS_KEY: arrays, METRICS_KEY: MetricRecord(metrics)})
    return Message(content, reply_to=message)


def _moments(
    message: Message, model: nn.Module, dataset: TensorDataset, num_classes: int
) -> Message:
    """One forward pass. Hooks would do as well, but not where steps are replayed on a GPU."""
    model.to(default_device())
    batches = DataLoader(dataset, batch_size=_PASS_BATCH)
    metrics = MetricRecord({**_counts(dataset, num_classes), EPOCHS_KEY: 0})
    content = RecordDict({ARRAYS_KEY: head_moments(model, batches), METRICS_KEY: metrics})
    return Message(content, reply_to=message)


def _counts(dataset: TensorDataset, num_classes: int) -> dict[str, Any]:
    return {
        NUM_EXAMPLES_KEY: len(dataset),
        CLASS_COUNTS_KEY: class_counts(dataset.tensors[1], num_classes),
    }


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the global model on this client's share of the test examples."""
    task = get_task(text(context.run_config, "task"))
    model = load_model(task.build_model(context.run_config, 0), message)
    index, clients = _place(context)
    share = TensorDataset(*(t[index::clients] for t in task.load_test(context.run_config).tensors))
    loss, accuracy = task.evaluate(model, share)
    metrics = MetricRecord({NUM_EXAMPLES_KEY: len(share), "loss": loss, "accuracy": accuracy})
    return Message(RecordDict({METRICS_KEY: metrics}), reply_to=message)


def _config(message: Message, context: Context) -> dict[str, Any]:
    """What the strategy says for this stage, and the run's momentum and batch size.

    Not the whole run config: it has `proximal-mu` whatever the strategy is.
    """
    own = ("momentum", "batch-size")
    fixed = {key: value for key, value in context.run_config.items() if key in own}
    return {**fixed, **message.content.config_records[CONFIG_KEY]}


def _training_options(config: RunConfig) -> dict[str, Any]:
    """Those of `Task.train` that the config decides."""
    return {
        "epochs": integer(config, EPOCHS_CONFIG_KEY),
        "lr": number(config, LEARNING_RATE_KEY),
        "momentum": number(config, "momentum"),
        "weight_decay": number(config, WEIGHT_DECAY_KEY),
        "batch_size": integer(config, "batch-size"),
    }


def _penalty(config: RunConfig, model: nn.Module) -> Callable[[], Tensor] | None:
    """FedProx's, with the model as it is for a reference; None for the other strategies."""
    mu = number(config, PROXIMAL_MU_KEY) if PROXIMAL_MU_KEY in config else 0.0
    if mu == 0.0:
        return None
    # Where it is trained: a reference that moves at every step would halt the GPU.
    model.to(default_device())
    reference = {name: p.detach().clone() for name, p in model.named_parameters()}
    return partial(proximal_term, model, mu, reference)


def _initial_model(task: Task, context: Context) -> nn.Module:
    """What a client that gets no model begins with: weights of its own, or the run's."""
    shared = text(context.run_config, "initialisation") == SEED
    seed = integer(context.run_config, "seed") if shared else _client_seed(context)
    return task.build_model(context.run_config, seed)


def _place(context: Context) -> tuple[int, int]:
    node = context.node_config
    if PARTITION_KEY not in node or PARTITIONS_KEY not in node:
        raise ValueError(
            "The shipped tasks need the client's share of the data: start the SuperNode with "
            '--node-config "partition-id=0 num-partitions=10".'
        )
    return int(node[PARTITION_KEY]), int(node[PARTITIONS_KEY])


def _partition(task: Task, context: Context) -> TensorDataset:
    index, clients = _place(context)
    parts = max(clients, integer(context.run_config, "num-partitions"))
    return task.load_partition(context.run_config, index, parts)


def _client_seed(context: Context, *place: int) -> int:
    """A seed of this client's own, for its first weights or for one stage of one round."""
    run_seed = integer(context.run_config, "seed")
    return int(np.random.SeedSequence([run_seed, _place(context)[0], *place]).generate_state(1)[0])


def _local_model(context: Context, stage: Stage) -> Path | None:
    """Where this client's local model is saved; None but in the first round's local stage."""
    folder = local_models_folder(context.run_config, context.node_config)
    if folder is None or stage.round != 1 or stage.name != LOCAL:
        return None
    return folder / f"client-{_place(context)[0]}.safetensors"


def _take_saved(task: Task, model: nn.Module, path: Path, dataset: TensorDataset) -> float:
    load_model(model, safetensors.torch.load_file(path))
    return task.evaluate(model, dataset)[0]


def _save(model: nn.Module, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # What shares memory cannot be saved: tied weights, an LSTM's on a GPU.
    tensors = {name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(tensors, path)
