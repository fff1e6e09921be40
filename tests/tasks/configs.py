"""Run configs for the tests: the app's defaults, a task's own, and one tiny round."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
DEFAULTS = PYPROJECT["tool"]["flwr"]["app"]["config"]
TINY = {
    "num-server-rounds": 1,
    "local-epochs": 1,
    "retrain-epochs": 1,
    "head-epochs-factor": 1.0,
    "groups-per-stage": "all",
}


def task_config(name):
    path = ROOT / "fedma_flwr" / "tasks" / f"{name}.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))


def config(name, **overrides):
    """The run config that a task's file gives; underscores in keys stand for hyphens."""
    own = {key.replace("_", "-"): value for key, value in overrides.items()}
    return {**DEFAULTS, **task_config(name), **own}
