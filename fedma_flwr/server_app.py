"""The ServerApp of the shipped tasks: run config in, FedMA, FedAvg or FedProx out."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from fedma_flwr.client import load_model
from fedma_flwr.server.output_folder import OutputFolder
from fedma_flwr.server.recorded_cohort import RecordedCohort
from fedma_flwr.server.run_settings import run_settings
from fedma_flwr.strategy_from_config import FEDMA, folder, make_strategy
from fedma_flwr.structure import PermutationSpec, derive_spec
from fedma_flwr.tasks import RunConfig, Task, get_task
from fedma_flwr.tasks.config import (
    check_at_least,
    check_types,
    flag,
    integer,
    limit,
    naming_keys,
    text,
    train_config,
)

app = ServerApp()

FOLDERS = ("output-dir", "checkpoint-dir", "matchings")


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the strategy that the run config names."""
    run(grid, context.run_config)


def run(grid: Grid, config: RunConfig, spec: PermutationSpec | None = None) -> OutputFolder:
    """Run the strategy that the run config names, on any grid.

    Parameters
    ----------
    grid : Grid
        Flower's, or an in-process one.
    config : mapping
        The run config; its keys are those of ``[tool.flwr.app.config]``.
    spec : PermutationSpec, optional
        Of the config's model, where it is known from an earlier run. None: derived and proven.

    Returns
    -------
    OutputFolder
        With the rounds' accuracies and counters.

    Raises
    ------
    ValueError
        If a value is not allowed; the message names its key. Nothing has been sent then.
    """
    check_types(config)
    task = _checked_task(config, len(list(grid.get_node_ids())))
    model = task.build_model(config, integer(config, "seed"))
    if text(config, "strategy") != FEDMA and not text(config, "client-widths"):
        spec = None
    elif spec is None:  # deriving takes seconds; the baselines have no use for it
        spec = derive_spec(model, task.example_inputs())
    with naming_keys(config):
        output_folder = make_output_folder(config, spec)
    strategy = make_strategy(config, spec, output_folder)
    with naming_keys(config), output_folder.claimed(), output_folder.reported():
        result = strategy.start(
            grid,
            ArrayRecord(model.state_dict()),
            num_rounds=integer(config, "num-server-rounds"),
            timeout=limit(config, "stage-timeout"),
            train_config=ConfigRecord({**train_config(config)}),
            evaluate_fn=_evaluation(config, task, strategy, output_folder),
        )
        output_folder.add_model(result.arrays)
    return output_folder


def _checked_task(config: RunConfig, num_nodes: int) -> Task:
    """The run's task, if its values are allowed and its data can be split among the clients."""
    task = get_task(text(config, "task"))
    check_at_least(config, "num-server-rounds", 1)
    check_at_least(config, "num-partitions", 0)
    counts = (integer(config, key) for key in ("min-available-nodes", "num-partitions"))
    task.validate(config, max(num_nodes, *counts))
    return task


def _evaluation(
    config: RunConfig, task: Task, strategy: RecordedCohort, output_folder: OutputFolder
) -> Callable[[int, ArrayRecord], MetricRecord]:
    """Return what measures and records the global model after every round."""

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        net = load_model(task.build_model(config, 0), arrays)
        loss, accuracy = task.evaluate(net, task.load_test(config))
        output_folder.add_round(
            server_round, arrays, strategy.history, accuracy=accuracy, loss=loss
        )
        if server_round == 0:
            output_folder.add_settings(run_settings(strategy, integer(config, "num-server-rounds")))
        return MetricRecord({"accuracy": accuracy, "loss": loss})

    return evaluate


def make_output_folder(config: RunConfig, spec: PermutationSpec | None) -> OutputFolder:
    """The output folder of a run, or what stands for it where nothing is written."""
    about = {
        "strategy": config["strategy"],
        "task": config["task"],
        "seed": config["seed"],
        "config": {key: config[key] for key in sorted(config) if key not in FOLDERS},
    }
    return OutputFolder(folder(config, "output-dir"), spec, about, resume=flag(config, "resume"))
