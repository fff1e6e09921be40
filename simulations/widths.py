"""Clients of several widths: FedMA and HeteroFL, and what wide or small clients reach alone.

    python -m simulations.widths --model mlp --rounds 8

Clients are split into equal parts of each ratio, in their order. Of the model after every round the
accuracy is measured at each ratio, as a client of that ratio runs it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord

from fedma_flwr import FedAvg, FedMA, load_model
from fedma_flwr.client_app import app
from fedma_flwr.structure import derive_spec
from fedma_flwr.tasks import Task, get_task
from fedma_flwr.tasks.config import train_config
from fedma_flwr.testing import InProcessGrid
from simulations.methods import Config, app_defaults

#: By method: its strategy, its options, and which of the ratios take part.
METHODS: dict[str, tuple[type[FedMA] | type[FedAvg], dict[str, Any], str]] = {
    "fedma": (FedMA, {}, "all"),
    "fedma-first": (FedMA, {"width_selection": "first"}, "all"),
    "fedma-rolling": (FedMA, {"width_selection": "rolling"}, "all"),
    "fedma-random": (FedMA, {"width_selection": "random"}, "all"),
    "fedma-trained": (FedMA, {"head": "trained"}, "all"),
    "heterofl": (FedAvg, {}, "all"),
    "wide-only": (FedMA, {}, "widest"),
    "small-fedavg": (FedAvg, {}, "as the narrowest"),
    "all-wide": (FedMA, {}, "as the widest"),
}


def ratios_of(ratios: Sequence[float], clients: int) -> list[float]:
    """Each client's ratio: equal parts, in their order."""
    return [ratios[client * len(ratios) // clients] for client in range(clients)]


def run(method: str, config: Config, ratios: Sequence[float], clients: int) -> list[dict[str, Any]]:
    """One entry a round: the accuracy at each ratio, and bytes by now.

    Parameters
    ----------
    method : str
        A key of `METHODS`.
    config : dict
        A whole run config of the shipped apps.
    ratios : sequence of float
        The widths that there are.
    clients : int
        Number of clients.
    """
    strategy_class, options, who = METHODS[method]
    task = get_task(config["task"])
    model = task.build_model(config, config["seed"])
    spec = derive_spec(model, task.example_inputs())
    own = ratios_of(ratios, clients)
    if who.startswith("as"):
        own = [max(ratios) if "widest" in who else min(ratios)] * clients
    grid = InProcessGrid(app, clients, config)
    for node, width in zip(list(grid.contexts), own, strict=True):
        grid.contexts[node].node_config["client-width"] = width
        if who == "widest" and width < max(ratios):
            del grid.contexts[node]
    strategy = strategy_class(spec=spec, fraction_evaluate=0.0, seed=config["seed"], **options)
    rounds: list[dict[str, Any]] = []
    strategy.start(
        grid,
        ArrayRecord(model.state_dict()),
        num_rounds=config["num-server-rounds"],
        train_config=ConfigRecord({**train_config(config)}),
        evaluate_fn=_evaluation(task, config, strategy, ratios, rounds),
    )
    return rounds


def _evaluation(
    task: Task,
    config: Config,
    strategy: FedMA | FedAvg,
    ratios: Sequence[float],
    rounds: list[dict[str, Any]],
) -> Callable[[int, ArrayRecord], MetricRecord]:
    def evaluate(server_round: int, _: ArrayRecord) -> MetricRecord:
        found = {}
        for ratio in ratios if server_round else ():
            net = load_model(task.build_model(config, 0), strategy.arrays_at(ratio))
            found[f"{ratio:g}"] = round(task.evaluate(net, task.load_test(config))[1], 4)
        if server_round:
            down = sum(record.bytes_down for record in strategy.history)
            up = sum(record.bytes_up for record in strategy.history)
            rounds.append({"round": server_round, "accuracy": found, "down": down, "up": up})
        return MetricRecord({f"accuracy-{name}": value for name, value in found.items()})

    return evaluate


def main() -> None:
    """Run what the command line says; print and write a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mlp", help="lenet or mlp, of the digits")
    parser.add_argument("--ratios", type=float, nargs="+", default=[1.0, 0.5, 0.25])
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--alpha", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--output", type=Path, help="JSON file of all rounds")
    options = parser.parse_args()
    results: dict[str, dict[str, Any]] = {}
    for method in options.methods:
        for seed in options.seeds:
            config = {
                **app_defaults(),
                "model": "" if options.model == "lenet" else options.model,
                "alpha": options.alpha,
                "seed": seed,
                "num-server-rounds": options.rounds,
                "local-epochs": options.epochs,
            }
            rounds = run(method, config, options.ratios, options.clients)
            results.setdefault(method, {})[str(seed)] = rounds
            last = rounds[-1]["accuracy"]
            print(f"{method:14} seed {seed}: {last}", flush=True)
            if options.output:
                options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
