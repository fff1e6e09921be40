"""The strategy and the matcher that a run config of the shipped apps names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedma_flwr.baselines import FedAvg, FedProx
from fedma_flwr.matching import BBPMAP, IdentityMatching, Matcher
from fedma_flwr.server.arguments import COMMON, OWN
from fedma_flwr.server.folders import as_folder
from fedma_flwr.server.output_folder import OutputFolder
from fedma_flwr.server.recorded_cohort import RecordedCohort
from fedma_flwr.strategy import FedMA
from fedma_flwr.structure import PermutationSpec
from fedma_flwr.tasks import RunConfig
from fedma_flwr.tasks.config import (
    SEED,
    arguments,
    check_choice,
    head_config,
    naming_keys,
    retrain_config,
    text,
)

FEDMA, FEDAVG, FEDPROX = STRATEGIES = ("fedma", "fedavg", "fedprox")
#: By preset: the keys that it sets where they are at their defaults, with both values.
PRESETS: dict[str, dict[str, tuple[Any, Any]]] = {
    "": {},
    "paper": {
        "groups-per-stage": ("all", "1"),
        "head": ("auto", "trained"),
        "matcher": ("bbpmap", "reference"),
        "gamma": (1.0, 7.0),
        "output": ("mean", "posterior"),
    },
}
MATCHERS = ("bbpmap", "reference", "learned", "identity")


def make_strategy(
    config: RunConfig, spec: PermutationSpec | None, output_folder: OutputFolder
) -> RecordedCohort:
    """The strategy that the run config names.

    Parameters
    ----------
    config : mapping
        The run config.
    spec : PermutationSpec or None
        Of the config's model; FedMA needs one, and whoever has narrow clients.
    output_folder : OutputFolder
        Takes the exchanges.

    Returns
    -------
    RecordedCohort
        FedMA, FedAvg or FedProx.

    Raises
    ------
    ValueError
        If there is no such strategy, or if one of its values is not allowed.
    """
    check_choice(config, "strategy", STRATEGIES)
    config = with_preset(config)
    options = _cohort_options(config)
    options["on_exchange"] = output_folder.add_exchange
    with naming_keys(config):
        strategy: RecordedCohort
        if config["strategy"] == FEDAVG:
            strategy = FedAvg(spec=spec, **options)
        elif config["strategy"] == FEDPROX:
            strategy = FedProx(spec=spec, **arguments(config, "proximal_mu"), **options)
        else:
            matcher = make_matcher(config)
            strategy = FedMA(spec=spec, matcher=matcher, **_fedma_options(config), **options)
    strategy.keeps_details = output_folder.folder is not None
    return strategy


def with_preset(config: RunConfig) -> RunConfig:
    """The run config with what its preset sets; a key that is not at its default keeps its value.

    Raises
    ------
    ValueError
        If there is no such preset.
    """
    check_choice(config, "preset", tuple(PRESETS))
    preset = PRESETS[text(config, "preset")]
    return {**config, **{k: to for k, (default, to) in preset.items() if config[k] == default}}


def folder(config: RunConfig, key: str) -> Path | None:
    """The folder that a key names; it must be absolute, since a run has no folder of its own.

    A leading ``~`` is the home of whoever runs the ServerApp.
    """
    path = text(config, key)
    if path and not as_folder(key, path).is_absolute():
        raise ValueError(
            f"{key} must be an absolute path, not {path!r}: the ServerApp runs in a folder "
            "of Flower's choosing"
        )
    return as_folder(key, path) if path else None


def _cohort_options(config: RunConfig) -> dict[str, Any]:
    """What all strategies take."""
    clients = arguments(config, "min_train_nodes", "min_evaluate_nodes", "min_available_nodes")
    fractions = arguments(config, "fraction_train", "fraction_evaluate")
    times = arguments(config, "node_timeout", "stage_timeout", "hello_timeout", "quorum")
    run = arguments(config, "seed", "resume", "registered_nodes", "client_widths")
    return {
        **(clients | fractions | times | run),
        "checkpoint_dir": folder(config, "checkpoint-dir"),
    }


def _fedma_options(config: RunConfig) -> dict[str, Any]:
    stages = arguments(config, "groups_per_stage", "one_shot")
    if not stages["one_shot"]:
        stages |= {"retrain_config": retrain_config(config), "head_config": head_config(config)}
    averaging = arguments(config, "averaging", "trimmed_share", "weighted_units")
    limits = arguments(config, "max_growth", "own_growth", "max_norm_ratio", "max_weight_ratio")
    others = arguments(config, "server_learning_rate", "wire_dtype", "width_selection")
    head = arguments(config, "head", "head_start", "head_fraction", "head_memory")
    return {
        **(stages | averaging | limits | others | head),
        "averaging": averaging["averaging"].replace("-", "_"),
        "max_weight_ratio": limits["max_weight_ratio"] or None,
        "initialisation": _initialisation(config),
        "personal": tuple(n.strip() for n in text(config, "personal").split(",") if n.strip()),
        "matchings": folder(config, "matchings"),
    }


def _initialisation(config: RunConfig) -> str:
    """How the strategy is told: weights that clients draw from the run's seed are not sent."""
    value = text(config, "initialisation")
    if value not in (COMMON, OWN, SEED):
        raise ValueError(f"initialisation must be {COMMON}, {OWN} or {SEED}, not {value!r}")
    return OWN if value == SEED else value


def make_matcher(config: RunConfig) -> Matcher:
    """The matcher that the run config names.

    Parameters
    ----------
    config : mapping
        The run config.

    Returns
    -------
    Matcher
        With the config's values; `IdentityMatching` has none.

    Raises
    ------
    ValueError
        If there is no such matcher, or if one of its values is not allowed.
    """
    check_choice(config, "matcher", MATCHERS)
    config = with_preset(config)
    name = config["matcher"]
    if name == "identity":
        return IdentityMatching()
    options = arguments(config, "gamma", "local_variance", "prior_variance", "sweeps", "output")
    with naming_keys(config):
        if name == "reference":
            return BBPMAP.reference(**options)
        if name == "learned":
            return BBPMAP.learned(**options)
        return BBPMAP(**options | _variances(config))


def _variances(config: RunConfig) -> dict[str, float | None]:
    """BBPMAP's variances: None, which calibrates them from the data, where the config has 0."""
    variances = arguments(config, "local_variance", "prior_variance")
    local, prior = variances.values()
    if (local == 0) != (prior == 0):
        raise ValueError(
            "local-variance and prior-variance must both be 0 (calibrated from the data) or both "
            f"be greater than 0, not {local} and {prior}"
        )
    return {name: value or None for name, value in variances.items()}
