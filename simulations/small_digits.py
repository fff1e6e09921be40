"""Real digits of 14 x 14 pixels, and clients that train a small network on their shares of them.

They are those of the MNIST task (4,000 to train, 1,000 to test), halved: a quarter of the work, so
that a communication round on the in-process grid takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from fedma_flwr import FedMA, Stage, class_counts, fedma_mod, load_model
from fedma_flwr.tasks import get_task, partition
from fedma_flwr.testing import InProcessGrid

TASK = get_task("mnist")

Mod = Callable[[Message, Context, Callable[[Message, Context], Message]], Message]


@dataclass(frozen=True)
class Training:
    """How clients train.

    Parameters
    ----------
    make_model : callable
        Makes the untrained network of a client, whose number it is called with.
    epochs, learning_rates : mapping
        By name of the stage.
    batch_size : int
        Examples a step.
    seed : int
        Of the shuffling.
    """

    make_model: Callable[[int], nn.Module]
    epochs: Mapping[str, int]
    learning_rates: Mapping[str, float]
    batch_size: int
    seed: int


@cache
def digits() -> tuple[TensorDataset, TensorDataset]:
    """The digits to train on and to test on: images, (examples, 1, 14, 14), and labels."""
    data = TASK.load("embedded", "")
    train, test = (
        TensorDataset(functional.avg_pool2d(part.tensors[0], 2), part.tensors[1])
        for part in (data.train, data.test)
    )
    return train, test


def split(labels: Tensor, clients: int, alpha: float, seed: int) -> list[Tensor]:
    """Each client's examples, Dirichlet(alpha) as in the paper's code."""
    return partition.split(
        labels.numpy(), "dirichlet", clients, alpha=alpha, self_balancing=True, seed=seed
    )


def make_app(
    shares: Sequence[TensorDataset], training: Training, mods: Sequence[Mod] = ()
) -> ClientApp:
    """Clients that train with SGD on their shares; `mods` come before `fedma_mod`."""
    app = ClientApp(mods=[*mods, fedma_mod])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client, stage = int(context.node_config["partition-id"]), Stage.from_message(message)
        model = load_model(training.make_model(client), message)
        TASK.train(
            model,
            shares[client],
            epochs=training.epochs[stage.name],
            lr=training.learning_rates[stage.name],
            momentum=0.9,
            weight_decay=0.0,
            batch_size=training.batch_size,
            seed=10_000 * training.seed + 100 * stage.round + 10 * stage.index + client,
        )
        labels = shares[client].tensors[1]
        counts = class_counts(labels, 10)
        metrics = MetricRecord({"num-examples": len(labels), "class-counts": counts})
        records = {"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}
        return Message(RecordDict(records), reply_to=message)

    return app


def accuracies(
    strategy: FedMA, grid: InProcessGrid, make_model: Callable[[], nn.Module], rounds: int
) -> list[float]:
    """Run a strategy; the global model's accuracy on the test digits after each round."""
    found: list[float] = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> None:
        if server_round:
            found.append(TASK.evaluate(load_model(make_model(), arrays), digits()[1])[1])

    initial = ArrayRecord(make_model().state_dict())
    strategy.start(grid, initial, num_rounds=rounds, evaluate_fn=evaluate)
    return found
