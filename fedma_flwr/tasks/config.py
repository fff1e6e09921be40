"""Reading the run config: every value is checked, every error names its key."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from logging import WARNING
from typing import Any, Literal

from flwr.supercore import log

from fedma_flwr.protocol import EPOCHS_CONFIG_KEY, LEARNING_RATE_KEY

RunConfig = Mapping[str, bool | float | int | str]
Reader = Callable[[RunConfig, str], Any]
SEED = "seed"  # of initialisation: every client draws the same weights, and none are sent
WEIGHT_DECAY_KEY = "weight-decay"  # beside protocol's two, what a client is told about training


def text(run_config: RunConfig, key: str) -> str:
    """Return a string value; ValueError if it is missing or no string."""
    value = _value(run_config, key)
    if not isinstance(value, str):
        raise ValueError(f"{key} must be a string, not {value!r}")
    return value


def integer(run_config: RunConfig, key: str) -> int:
    """Return an integer value; ValueError if it is missing or no integer."""
    value = _value(run_config, key)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{key} must be an integer, not {value!r}")
    return value


def number(run_config: RunConfig, key: str) -> float:
    """Return a finite number; ValueError if it is missing or not one."""
    value = _value(run_config, key)
    if isinstance(value, bool | str) or not math.isfinite(value):
        raise ValueError(f"{key} must be a finite number, not {value!r}")
    return float(value)


def limit(run_config: RunConfig, key: str) -> float:
    """Return a number, infinite for no limit; ValueError if it is missing or not one."""
    value = _value(run_config, key)
    if isinstance(value, bool | str) or math.isnan(value):
        raise ValueError(f"{key} must be a number, not {value!r}")
    return float(value)


def count_or_all(run_config: RunConfig, key: str) -> int | Literal["all"]:
    """Return a count, also if it is written as a string, or "all"; ValueError if it is neither."""
    value = _value(run_config, key)
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    every: Literal["all"] = "all"
    if value == every:
        return every
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{key} must be a number >= 1 or 'all', not {value!r}")
    return value


def flag(run_config: RunConfig, key: str) -> bool:
    """Return a truth value; ValueError if it is missing or none."""
    value = _value(run_config, key)
    if not isinstance(value, bool):
        raise ValueError(f"{key} must be true or false, not {value!r}")
    return value


def widths(run_config: RunConfig, key: str) -> dict[str, float]:
    """Return widths by client key of a text such as "7=0.25, 8=0.5"; ValueError if it is none."""
    given = text(run_config, key)
    found: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in given.split(","))):
        name, _, value = (piece.strip() for piece in part.rpartition("="))
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = 0.0
        if not (name and 0.0 < found[name] <= 1.0):
            raise ValueError(
                f"{key} must be client keys and widths above 0, at most 1, as in "
                f"'7=0.25, 8=0.5', not {given!r}"
            )
    return found


#: How the value of every key of the shipped apps is read.
READERS: dict[str, Reader] = {
    **dict.fromkeys(("strategy", "task", "model", "dataset", "partition", "matcher"), text),
    **dict.fromkeys(("output-dir", "checkpoint-dir", "data-dir", "local-models"), text),
    **dict.fromkeys(("matchings", "initialisation", "averaging", "wire-dtype", "output"), text),
    **dict.fromkeys(("head", "head-start", "preset", "personal"), text),
    **dict.fromkeys(("num-server-rounds", "seed", "num-partitions", "head-memory"), integer),
    **dict.fromkeys(("num-roles", "min-characters", "stride", "hidden-size"), integer),
    **dict.fromkeys(("local-epochs", "retrain-epochs", "batch-size", "sweeps"), integer),
    **dict.fromkeys(("min-train-nodes", "min-evaluate-nodes", "min-available-nodes"), integer),
    **dict.fromkeys(("alpha", "validation-share", "grey-share", "test-share"), number),
    **dict.fromkeys(("lr", "momentum", "weight-decay", "proximal-mu"), number),
    **dict.fromkeys(("retrain-lr", "retrain-weight-decay"), number),
    **dict.fromkeys(("head-epochs-factor", "head-lr-factor", "head-weight-decay"), number),
    **dict.fromkeys(("max-growth", "own-growth", "server-learning-rate"), number),
    **dict.fromkeys(("trimmed-share", "quorum"), number),
    **dict.fromkeys(("gamma", "local-variance", "prior-variance"), number),
    **dict.fromkeys(("fraction-train", "fraction-evaluate", "head-fraction"), number),
    **dict.fromkeys(("max-norm-ratio", "max-weight-ratio"), limit),
    **dict.fromkeys(("node-timeout", "stage-timeout", "hello-timeout"), limit),
    **dict.fromkeys(("augment", "self-balancing", "resume", "one-shot", "weighted-units"), flag),
    "registered-nodes": flag,
    "client-widths": widths,
    "width-selection": text,
    "groups-per-stage": count_or_all,
}


def check_types(run_config: RunConfig) -> None:
    """Raise ValueError if a value is not of its key's type, whether the run needs it or not.

    Also for a key that looks like one of the app's and is none; others are named in the log.
    """
    for key in run_config.keys() - READERS.keys():
        if near := _nearest(key, READERS):
            raise ValueError(f"the run config has {key!r}, which is no key: did you mean {near!r}?")
        log(WARNING, "The run config has %r, which nothing reads.", key)
    for key in run_config:
        if key in READERS:
            READERS[key](run_config, key)


def arguments(run_config: RunConfig, *names: str) -> dict[str, Any]:
    """Return the values of the arguments `names`, whose keys have hyphens for underscores."""
    keys = {name: name.replace("_", "-") for name in names}
    return {name: READERS[key](run_config, key) for name, key in keys.items()}


def train_config(run_config: RunConfig) -> dict[str, int | float]:
    """Return what clients are told about training, unless a later stage's own overrides it."""
    return {
        EPOCHS_CONFIG_KEY: integer(run_config, EPOCHS_CONFIG_KEY),
        LEARNING_RATE_KEY: number(run_config, LEARNING_RATE_KEY),
        WEIGHT_DECAY_KEY: number(run_config, WEIGHT_DECAY_KEY),
    }


def retrain_config(run_config: RunConfig) -> dict[str, int | float]:
    """Return what overrides `train_config` in the retrain stages."""
    return {
        EPOCHS_CONFIG_KEY: integer(run_config, "retrain-epochs"),
        LEARNING_RATE_KEY: number(run_config, "retrain-lr"),
        WEIGHT_DECAY_KEY: number(run_config, "retrain-weight-decay"),
    }


def head_config(run_config: RunConfig) -> dict[str, int | float]:
    """Return what overrides `train_config` in the head stage."""
    epochs = integer(run_config, "retrain-epochs") * number(run_config, "head-epochs-factor")
    return {
        EPOCHS_CONFIG_KEY: max(1, round(epochs)),
        LEARNING_RATE_KEY: number(run_config, "retrain-lr") * number(run_config, "head-lr-factor"),
        WEIGHT_DECAY_KEY: number(run_config, "head-weight-decay"),
    }


@contextmanager
def naming_keys(run_config: RunConfig) -> Iterator[None]:
    """Let a ValueError about an argument name the key that the argument came from."""

    def key_of(name: re.Match[str]) -> str:
        key = "num-server-rounds" if name[0] == "num_rounds" else name[0].replace("_", "-")
        return key if key in run_config else name[0]

    try:
        yield
    except ValueError as error:
        said = re.sub(r"(?<![/'\"\w])[a-z]+(_[a-z]+)+(?![/'\"\w])", key_of, str(error))
        if said == str(error) or type(error) is not ValueError:  # others say more than their text
            raise
        raise ValueError(said) from error


def check_choice(run_config: RunConfig, key: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless the value is one of `choices`."""
    value = _value(run_config, key)
    if value not in choices:
        raise ValueError(f"{key} must be one of {', '.join(choices)}, not {value!r}")


def check_partition(run_config: RunConfig) -> None:
    """Raise ValueError unless the keys that say how to split the data are allowed."""
    check_bound(run_config, "seed", integer, lambda seed: seed >= 0, "at least 0")
    check_bound(run_config, "alpha", number, lambda alpha: alpha > 0, "greater than 0")
    flag(run_config, "self-balancing")


def check_training(run_config: RunConfig) -> None:
    """Raise ValueError unless the keys of local training are allowed."""
    for key in ("local-epochs", "retrain-epochs", "batch-size"):
        check_bound(run_config, key, integer, lambda value: value >= 1, "at least 1")
    for key in ("head-epochs-factor", "lr", "retrain-lr", "head-lr-factor"):
        check_bound(run_config, key, number, lambda value: value > 0, "greater than 0")
    for key in ("weight-decay", "retrain-weight-decay", "head-weight-decay"):
        check_bound(run_config, key, number, lambda value: value >= 0, "at least 0")
    check_bound(
        run_config, "momentum", number, lambda value: 0 <= value < 1, "at least 0 and less than 1"
    )


def check_share(run_config: RunConfig, key: str) -> None:
    """Raise ValueError unless the value is a number from 0 to 1."""
    check_bound(run_config, key, number, lambda share: 0 <= share <= 1, "0 .. 1")


def check_at_least(run_config: RunConfig, key: str, least: int) -> None:
    """Raise ValueError unless the value is an integer and not below `least`."""
    check_bound(run_config, key, integer, lambda value: value >= least, f"at least {least}")


def check_bound(
    run_config: RunConfig,
    key: str,
    read: Callable[[RunConfig, str], float],
    allowed: Callable[[float], bool],
    words: str,
) -> None:
    """Raise ValueError, in these `words`, unless the value that `read` gives is `allowed`."""
    value = read(run_config, key)
    if not allowed(value):
        raise ValueError(f"{key} must be {words}, not {value!r}")


def _value(run_config: RunConfig, key: str) -> bool | float | int | str:
    if key not in run_config:
        near = _nearest(key, run_config.keys() - READERS.keys())
        hint = f"; it has {near!r}, which is no key" if near else ""
        raise ValueError(f"{key} is missing from the run config{hint}")
    return run_config[key]


def _nearest(key: str, keys: Iterable[str]) -> str:
    """The key that looks most like another; empty if none does."""
    near = get_close_matches(key.lower().replace("_", "-"), sorted(keys), n=1, cutoff=0.75)
    return near[0] if near else ""
