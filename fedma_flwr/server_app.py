"""The ServerApp of the shipped tasks: run config in, FedMA, FedAvg or FedProx out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from fedma_flwr.baselines import FedAvg, FedProx
from fedma_flwr.client import load_model
from fedma_flwr.matching import BBPMAP, IdentityMatching, Matcher
from fedma_flwr.server.arguments import COMMON, OWN
from fedma_flwr.server.cohort import SeededCohort
from fedma_flwr.server.output_folder import OutputFolder
from fedma_flwr.strategy import FedMA
from fedma_flwr.structure import GroupsPerStage, PermutationSpec, derive_spec
from fedma_flwr.tasks import RunConfig, get_task
from fedma_flwr.tasks.config import SEED, check_at_least, flag, integer

app = ServerApp()

STRATEGIES = ("fedma", "fedavg", "fedprox")
FOLDERS = ("output-dir", "checkpoint-dir", "matchings")
MATCHERS = ("bbpmap", "reference", "learned", "identity")


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
    task = get_task(str(config["task"]))
    rounds, seed = int(config["num-server-rounds"]), int(config["seed"])
    if rounds < 1:
        raise ValueError(f"num-server-rounds must be at least 1, not {rounds}")
    clients = max(len(list(grid.get_node_ids())), int(config["min-available-nodes"]))
    check_at_least(config, "num-partitions", 0)
    task.validate(config, max(clients, integer(config, "num-partitions")))
    model = task.build_model(config, seed)
    if config["strategy"] != "fedma":
        spec = None
    elif spec is None:  # deriving takes seconds; the baselines have no use for it
        spec = derive_spec(model, task.example_inputs())
    recorder = make_recorder(config, spec)
    strategy = make_strategy(config, spec, recorder)

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        net = load_model(task.build_model(config, 0), arrays)
        loss, accuracy = task.evaluate(net, task.load_test(config))
        recorder.add_round(server_round, arrays, strategy.history, loss=loss, accuracy=accuracy)
        return MetricRecord({"accuracy": accuracy, "loss": loss})

    result = strategy.start(
        grid,
        ArrayRecord(model.state_dict()),
        num_rounds=rounds,
        timeout=float(config["stage-timeout"]),
        train_config=ConfigRecord(
            {
                "local-epochs": int(config["local-epochs"]),
                "lr": float(config["lr"]),
                "weight-decay": float(config["weight-decay"]),
            }
        ),
        evaluate_fn=evaluate,
    )
    recorder.add_model(result.arrays)
    return recorder


def make_recorder(config: RunConfig, spec: PermutationSpec | None) -> OutputFolder:
    """The recorder of a run."""
    about = {
        "strategy": config["strategy"],
        "task": config["task"],
        "seed": config["seed"],
        "config": {key: config[key] for key in sorted(config) if key not in FOLDERS},
    }
    return OutputFolder(_folder(config, "output-dir"), spec, about, resume=flag(config, "resume"))


def _folder(config: RunConfig, key: str) -> Path | None:
    """The folder that a key names; it must be absolute, since a run has no folder of its own."""
    folder = str(config[key])
    if folder and not Path(folder).is_absolute():
        raise ValueError(
            f"{key} must be an absolute path, not {folder!r}: the ServerApp runs in a folder "
            "of Flower's choosing"
        )
    return Path(folder) if folder else None


def make_strategy(
    config: RunConfig, spec: PermutationSpec | None, recorder: OutputFolder
) -> SeededCohort:
    """The strategy that the run config names.

    Raises
    ------
    ValueError
        If there is no such strategy, or if one of its values is not allowed.
    """
    name = config["strategy"]
    common: dict[str, Any] = {
        "fraction_train": float(config["fraction-train"]),
        "fraction_evaluate": float(config["fraction-evaluate"]),
        "min_train_nodes": int(config["min-train-nodes"]),
        "min_evaluate_nodes": int(config["min-evaluate-nodes"]),
        "min_available_nodes": int(config["min-available-nodes"]),
        "seed": int(config["seed"]),
        "node_timeout": float(config["node-timeout"]),
        "stage_timeout": float(config["stage-timeout"]),
        "on_exchange": recorder.add_exchange,
        "checkpoint_dir": _folder(config, "checkpoint-dir"),
        "resume": flag(config, "resume"),
    }
    if name == "fedavg":
        return FedAvg(**common)
    if name == "fedprox":
        return FedProx(proximal_mu=float(config["proximal-mu"]), **common)
    if name != "fedma":
        raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, not {name!r}")
    later: dict[str, Any] = {} if flag(config, "one-shot") else _later_configs(config)
    return FedMA(
        spec=spec,
        matcher=make_matcher(config),
        groups_per_stage=_groups_per_stage(config),
        one_shot=flag(config, "one-shot"),
        initialisation=_initialisation(config),
        max_growth=float(config["max-growth"]),
        weighted_units=flag(config, "weighted-units"),
        matchings=_folder(config, "matchings"),
        server_learning_rate=float(config["server-learning-rate"]),
        averaging=str(config["averaging"]).replace("-", "_"),
        trimmed_share=float(config["trimmed-share"]),
        max_norm_ratio=float(config["max-norm-ratio"]),
        max_weight_ratio=float(config["max-weight-ratio"]) or None,
        wire_dtype=str(config["wire-dtype"]),
        **later,
        **common,
    )


def _initialisation(config: RunConfig) -> str:
    """How the strategy is told: weights that clients draw from the run's seed are not sent."""
    value = str(config["initialisation"])
    if value not in (COMMON, OWN, SEED):
        raise ValueError(f"initialisation must be {COMMON}, {OWN} or {SEED}, not {value!r}")
    return OWN if value == SEED else value


def _later_configs(config: RunConfig) -> dict[str, Any]:
    """What overrides the train config in the stages after the first."""
    epochs, lr = int(config["retrain-epochs"]), float(config["retrain-lr"])
    return {
        "retrain_config": {
            "local-epochs": epochs,
            "lr": lr,
            "weight-decay": float(config["retrain-weight-decay"]),
        },
        "head_config": {
            "local-epochs": max(1, round(epochs * float(config["head-epochs-factor"]))),
            "lr": lr * float(config["head-lr-factor"]),
            "weight-decay": float(config["head-weight-decay"]),
        },
    }


def make_matcher(config: RunConfig) -> Matcher:
    """The matcher that the run config names.

    Raises
    ------
    ValueError
        If there is no such matcher, or if one of its values is not allowed.
    """
    name = config["matcher"]
    if name == "identity":
        return IdentityMatching()
    options: dict[str, Any] = {
        "gamma": float(config["gamma"]),
        "local_variance": float(config["local-variance"]),
        "prior_variance": float(config["prior-variance"]),
        "sweeps": int(config["sweeps"]),
        "output": str(config["output"]),
    }
    if name == "bbpmap":
        for key in ("local_variance", "prior_variance"):
            options[key] = options[key] or None  # 0: calibrated from the data
        return BBPMAP(**options)
    if name == "reference":
        return BBPMAP.reference(**options)
    if name == "learned":
        return BBPMAP.learned(**options)
    raise ValueError(f"matcher must be one of {', '.join(MATCHERS)}, not {name!r}")


def _groups_per_stage(config: RunConfig) -> GroupsPerStage:
    value = config["groups-per-stage"]
    if isinstance(value, str) and value.isdigit():
        return int(value)
    every: Literal["all"] = "all"
    if value != every and (isinstance(value, bool) or not isinstance(value, int)):
        raise ValueError(f"groups-per-stage must be a number >= 1 or 'all', not {value!r}")
    return every if value == every else int(value)
