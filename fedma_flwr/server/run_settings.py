"""What a run was set to, as text, and the versions that it runs on: for its records."""

from __future__ import annotations

import platform
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fedma_flwr.server.cohort import SeededCohort

_PACKAGES = ("fedma-flwr", "flwr", "torch", "numpy", "scipy")
_LONGEST = 200  # characters of one setting
_COHORT = (
    "seed",
    "fraction_train",
    "fraction_evaluate",
    "min_train_nodes",
    "min_available_nodes",
    "node_timeout",
    "stage_timeout",
    "quorum",
    "head_fraction",
    "proximal_mu",
)
_SHOWN_ELSEWHERE = ("spec", "plan", "seed", "taking_part")


def run_settings(strategy: SeededCohort, num_rounds: int = 0) -> dict[str, Any]:
    """What a run was set to.

    Parameters
    ----------
    strategy : SeededCohort
        FedMA, or one that has no stages.
    num_rounds : int (default: 0)
        Rounds that were asked for; 0: not known.

    Returns
    -------
    dict
        ``strategy``, ``num_rounds``, ``versions``, ``settings`` and, of FedMA, ``groups`` (their
        initial widths) and ``plan``: what clients do in each stage, and what comes of it.
    """
    values = {name: getattr(strategy, name) for name in _COHORT if hasattr(strategy, name)}
    found: dict[str, Any] = {
        "strategy": type(strategy).__name__,
        "num_rounds": num_rounds,
        "versions": versions(),
    }
    settings = getattr(strategy, "settings", None)
    if settings is not None:
        names = [f.name for f in fields(settings) if f.name not in _SHOWN_ELSEWHERE]
        values |= {name: getattr(settings, name) for name in names}
        if settings.personal:
            values["personal"] = ", ".join(settings.personal)
        found["groups"] = {name: group.size for name, group in settings.spec.groups.items()}
        found["plan"] = [
            {
                "name": stage.name,
                "groups": list(stage.groups),
                "settles": len(stage.settles),
                "trains": not settings.trains_nothing(stage.index),
                "solves_head": stage.solves_head,
                "head": any(name in settings.spec.head for name in stage.settles),
            }
            for stage in settings.plan.stages
        ]
    found["settings"] = {name: str(value)[:_LONGEST] for name, value in values.items()}
    return found


def versions() -> dict[str, str]:
    """Of Python and of the packages that a run depends on."""
    found = {"Python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from its source
            found[name] = "not installed"
    return found
