"""What an experiment's file says, and the settings that come of it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedma_flwr.strategy_from_config import make_matcher
from fedma_flwr.tasks import get_task
from fedma_flwr.tasks.config import check_types
from simulations.methods import CONFIGS, LABELS, Config, app_defaults

PLAN_KEYS = {"experiment", "clients", "seeds", "methods", "rounds", "target-accuracy", "config"}
# Set by the engine, setting by setting.
RESERVED = {
    "strategy",
    "num-server-rounds",
    "seed",
    "output-dir",
    "checkpoint-dir",
    "resume",
    "local-models",
    "matchings",
}


@dataclass(frozen=True)
class Plan:
    """What an experiment's file says.

    Parameters
    ----------
    clients : int
        Number of clients.
    seeds : tuple of int
        Of the initial model, partition, shuffling, cohorts and matching.
    methods : tuple of str
        Keys of `simulations.methods.LABELS`.
    rounds : mapping
        Communication rounds by method.
    target : float or None
        Accuracy whose cost is asked for.
    config : mapping
        Overrides of the app's config keys.
    options : mapping
        The experiment's own keys.
    """

    clients: int
    seeds: tuple[int, ...]
    methods: tuple[str, ...]
    rounds: Mapping[str, int]
    target: float | None
    config: Config
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Setting:
    """One line of an experiment.

    Parameters
    ----------
    name : str
        What sets it apart from the experiment's other settings; may be empty.
    method : str
        A key of `simulations.methods.LABELS`.
    clients : int
        Number of clients.
    config : mapping
        Overrides of the app's config keys, those of the plan included.
    x : float or None
        Its place where accuracy is drawn against a quantity.
    """

    name: str
    method: str
    clients: int
    config: Config
    x: float | None = None

    def resolve(self, seed: int) -> Config:
        """Return the whole run config of one seed."""
        own = {**self.config, **CONFIGS[self.method], "seed": seed}
        own.setdefault("min-available-nodes", self.clients)
        return {**app_defaults(), **own}


def setting(plan: Plan, method: str, name: str = "", **keywords: Any) -> Setting:
    """Return a setting of a plan.

    Parameters
    ----------
    plan : Plan
        Gives clients, rounds and config.
    method : str
        A key of `simulations.methods.LABELS`.
    name : str (default: "")
        What sets it apart.
    **keywords
        `clients` and `x` of `Setting`, and `config`: overrides that win over the plan's.
    """
    rounds = {"num-server-rounds": plan.rounds.get(method, 1)}
    config = {**plan.config, **rounds, **keywords.pop("config", {})}
    return Setting(name, method, keywords.pop("clients", plan.clients), config, **keywords)


def read_plan(path: Path, experiment: str, own: Mapping[str, Any]) -> Plan:
    """Read an experiment's file.

    Parameters
    ----------
    path : Path
        TOML: `experiment`, `clients`, `seeds`, `methods`, `[rounds]` by method, optionally
        `target-accuracy`, `[config]` with config keys of the app, and the experiment's own keys.
    experiment : str
        Whose file it is.
    own : mapping
        The experiment's own keys, and their defaults.

    Returns
    -------
    Plan
        What it says.

    Raises
    ------
    ValueError
        If it cannot be read, or a key or a value is not allowed; the message names it.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"--config: {path} cannot be read: {error}") from error
    if found.get("experiment") != experiment:
        raise ValueError(
            f"{path}: experiment is {found.get('experiment')!r}, but this is {experiment!r}"
        )
    _check_known(path, "key", set(found), PLAN_KEYS | set(own))
    config = found.get("config", {})
    _check_known(path, "config key", set(config), set(app_defaults()) - RESERVED)
    chosen, rounds = tuple(found.get("methods", ["fedma"])), found.get("rounds", {})
    _check_known(path, "method", {*chosen, *rounds}, set(LABELS))
    plan = Plan(
        clients=found.get("clients", 10),
        seeds=tuple(found.get("seeds", [0, 1, 2])),
        methods=chosen,
        rounds=rounds,
        target=found.get("target-accuracy"),
        config=config,
        options={key: found.get(key, value) for key, value in own.items()},
    )
    numbers = {"clients": plan.clients, **{f"rounds of {name}": n for name, n in rounds.items()}}
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"{path}: {name} must be an integer of at least 1, not {number!r}")
    return plan


def _check_known(path: Path, what: str, found: set[str], known: set[str]) -> None:
    if found - known:
        raise ValueError(
            f"{path}: unknown {what} {', '.join(map(repr, sorted(found - known)))}; "
            f"known are {', '.join(sorted(known))}"
        )


def check(settings: Sequence[Setting], seeds: Sequence[int]) -> None:
    """Refuse what cannot run, before anything starts: a run's own checks, for every setting.

    Raises
    ------
    ValueError, RuntimeError
        As `Task.validate` and the strategies do; the message names the config key.
    """
    for each in settings:
        for seed in seeds:
            config = each.resolve(seed)
            check_types(config)
            partitions = max(each.clients, config["num-partitions"])
            get_task(config["task"]).validate(config, partitions)
            make_matcher(config)
