"""Accuracy on real digits with hostile clients that know the honest ones and the rules.

``python -m benchmarks.attacks [--json FILE] [--seeds 0] [--alphas 0.1 0.5] [--hostile 2 3]
[--heads solved trained] [--averages ...] [--attacks ...]`` trains three linear layers on ten
clients' digits of 14 x 14 pixels, on the in-process grid. The last clients are hostile; the
run without attack is that of the others alone. A FILE of a run that was cut short is continued.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from benchmarks import attack_kinds
from benchmarks.attack_kinds import ATTACKS, STOLEN, Attack, Scene, State
from benchmarks.digits import shares
from benchmarks.measure import machine
from fedma_flwr import FedMA, Stage, class_counts, fedma_mod, load_model
from fedma_flwr.averaging import AVERAGES, TRIMMED_MEAN
from fedma_flwr.structure import PermutationSpec, derive_spec
from fedma_flwr.testing import InProcessGrid
from simulations.small_digits import TASK, digits

CLIENTS, ROUNDS, BATCH_SIZE, SIDE = 10, 5, 100, 14
EPOCHS, LEARNING_RATE, MOMENTUM = 3, 0.1, 0.9
KEYS = ("head", "alpha", "hostile", "averaging", "attack", "seed")

Row = dict[str, Any]


class Net(nn.Module):
    """Three linear layers; 7,002 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(SIDE * SIDE, 32)
        self.second = nn.Linear(32, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (batch, 10), of images, (batch, 1, 14, 14)."""
        x = functional.relu(self.first(x.flatten(1)))
        logits: Tensor = self.head(functional.relu(self.second(x)))
        return logits


@cache
def spec() -> PermutationSpec:
    """The network's spec."""
    return derive_spec(Net(), (torch.zeros(2, 1, SIDE, SIDE),))


@dataclass
class Crowd:
    """The clients of one run, of which the last are hostile and know the others.

    Parameters
    ----------
    attack : Attack
        What the hostile do.
    honest : int
        The first so many clients.
    alpha : float
        Of the Dirichlet distribution.
    seed : int
        Of the partition, the shuffling and the attack.
    solved : bool
        Whether the head is solved.
    """

    attack: Attack
    honest: int
    alpha: float
    seed: int
    solved: bool
    sent: dict[tuple[int, int], list[State]] = field(default_factory=dict)

    def train(self, message: Message, context: Context) -> Message:
        """A client's train function."""
        client, stage = int(context.node_config["partition-id"]), Stage.from_message(message)
        share = shares(self.alpha, self.seed)[client]
        counts = class_counts(share.tensors[1], 10)
        hostile, makes_head = client >= self.honest, stage.name == "head"
        model = load_model(Net(), message)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        if hostile:
            share = attack_kinds.examples(self.attack, share, makes_head=makes_head)
            if self.attack.trigger and not makes_head:
                model.load_state_dict(attack_kinds.set_detectors(before, SIDE))
        epochs = 1 if makes_head and self.solved else EPOCHS  # moments take one pass
        seed = 1000 * self.seed + 100 * stage.round + 10 * stage.index + client
        self._fit(model, share, epochs, seed)
        state = dict(model.state_dict())
        known = self.sent.setdefault((stage.round, stage.index), [])
        if not hostile:
            known.append(state)
        elif self.attack.change is not None and not (makes_head and self.solved):
            scene = Scene(before, state, known, self.seed, stage.round)
            state = self.attack.change(scene)
        examples, own = attack_kinds.lied_counts(self.attack if hostile else Attack(), counts)
        metrics = MetricRecord({"num-examples": examples, "class-counts": own})
        records = {"arrays": ArrayRecord(state), "metrics": metrics}
        return Message(RecordDict(records), reply_to=message)

    @staticmethod
    def _fit(model: nn.Module, share: TensorDataset, epochs: int, seed: int) -> None:
        options = {"momentum": MOMENTUM, "weight_decay": 0.0, "batch_size": BATCH_SIZE}
        TASK.train(model, share, epochs=epochs, lr=LEARNING_RATE, seed=seed, **options)


class HostileLast(InProcessGrid):
    """A grid on which the last clients answer last: they have seen what the others send."""

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Run every message to its end."""
        return super().push_messages(sorted(messages, key=lambda m: m.metadata.dst_node_id))


def make_strategy(row: Row) -> FedMA:
    """The strategy of a run; what is trimmed is the share of the hostile."""
    options = {"head": row["head"], "averaging": row["averaging"], "seed": row["seed"]}
    if row["averaging"] == TRIMMED_MEAN:
        options["trimmed_share"] = row["hostile"] / CLIENTS
    return FedMA(spec=spec(), fraction_evaluate=0.0, **options)


def run(row: Row) -> Row:
    """One run: accuracies after each round, and what a backdoor can do in the end."""
    began = time.perf_counter()
    torch.manual_seed(row["seed"])
    attack, honest = ATTACKS[row["attack"]], CLIENTS - row["hostile"]
    crowd = Crowd(attack, honest, row["alpha"], row["seed"], row["head"] == "solved")
    app = ClientApp(mods=[fedma_mod])
    app.train()(crowd.train)
    grid = HostileLast(app, honest if row["attack"] == "none" else CLIENTS)
    strategy = make_strategy(row)
    models: list[Net] = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> None:
        if server_round:
            models.append(load_model(Net(), arrays))

    initial = ArrayRecord(Net().state_dict())
    strategy.start(grid, initial, num_rounds=ROUNDS, evaluate_fn=evaluate)
    dropped = [client for record in strategy.history for client in record.dropped]
    return {
        **row,
        "accuracies": [TASK.evaluate(model, digits()[1])[1] for model in models],
        "backdoor": _backdoor(models[-1]),
        "honest_dropped": sum(int(client) < honest for client in dropped),
        "hostile_dropped": sum(int(client) >= honest for client in dropped),
        "growth": max(record.growth for record in strategy.history),
        "seconds": round(time.perf_counter() - began, 1),
    }


def _backdoor(model: nn.Module) -> float:
    """Share of the digits of other classes that a bright corner turns into the backdoor's."""
    images, labels = digits()[1].tensors
    others = attack_kinds.triggered(images[labels != STOLEN[0]])
    with torch.no_grad():
        found: Tensor = model.eval()(others).argmax(1) == STOLEN[0]
    return float(found.double().mean())


def jobs(arguments: argparse.Namespace) -> Iterator[Row]:
    """What identifies each run."""
    every = product(
        arguments.seeds,
        arguments.heads,
        arguments.alphas,
        arguments.hostile,
        arguments.averages,
        arguments.attacks,
    )
    for seed, head, alpha, hostile, average, attack in every:
        values = (head, alpha, hostile, average, attack, seed)
        yield dict(zip(KEYS, values, strict=True))


def measure(arguments: argparse.Namespace) -> list[Row]:
    """Run what is not in the file yet; rows are printed, and written as they come."""
    file = arguments.json
    rows: list[Row] = json.loads(file.read_text())["rows"] if file and file.exists() else []
    for place in jobs(arguments):
        if any(place.items() <= row.items() for row in rows):
            continue
        rows.append(run(place))
        print(json.dumps(rows[-1]), flush=True)
        if file:
            file.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1))
    return rows


def table(rows: Sequence[Row]) -> str:
    """Final accuracy by attack and rule, means over the seeds that have the run with a mean.

    In brackets the change from the run without the hostile, with a mean; the worst seed's last.
    """
    final = {(r["attack"], r["averaging"], r["seed"]): r["accuracies"][-1] for r in rows}
    averages = [name for name in AVERAGES if any(name == key[1] for key in final)]
    lines = [["attack", *(f"`{name}`" for name in averages)], ["---"] * (len(averages) + 1)]
    for attack in ATTACKS:
        cells = [_cell(final, attack, name) for name in averages]
        if any(cells):
            lines.append([attack, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(final: dict[tuple[str, str, int], float], attack: str, average: str) -> str:
    pairs = [
        (accuracy, final["none", "mean", seed])
        for (name, rule, seed), accuracy in final.items()
        if (name, rule) == (attack, average) and ("none", "mean", seed) in final
    ]
    if not pairs:
        return ""
    accuracies, before = np.array(pairs).T
    change = accuracies - before
    worst = f"; worst of {len(pairs)} {change.min():+.3f}" if len(pairs) > 1 else ""
    return f"{accuracies.mean():.3f} ({change.mean():+.3f}{worst})"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attacks", description=__doc__)
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.5, 0.1])
    parser.add_argument("--hostile", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--heads", nargs="+", choices=["solved", "trained"], default=["solved"])
    parser.add_argument("--averages", nargs="+", choices=AVERAGES, default=list(AVERAGES))
    parser.add_argument("--attacks", nargs="+", choices=list(ATTACKS), default=list(ATTACKS))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = measure(options)
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    for head, alpha, hostile in product(options.heads, options.alphas, options.hostile):
        place = {"head": head, "alpha": alpha, "hostile": hostile}
        print(f"\nhead {head}, Dirichlet({alpha}), {hostile} of {CLIENTS} hostile")
        print(table([row for row in rows if place.items() <= row.items()]))


if __name__ == "__main__":
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    main()
