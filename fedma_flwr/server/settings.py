"""What stays the same from round to round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from logging import INFO
from typing import Any

from flwr.supercore import log

from fedma_flwr.averaging import max_width
from fedma_flwr.bounds import Limits
from fedma_flwr.matching import Matcher
from fedma_flwr.robust import Averaging
from fedma_flwr.structure import PermutationSpec, StagePlan

COMMON, OWN = "common", "own"


@dataclass(frozen=True)
class RoundSettings:
    """What stays the same from round to round; the parameters are those of `FedMA`."""

    spec: PermutationSpec
    plan: StagePlan
    matcher: Matcher
    initialisation: str
    max_growth: float
    weighted_units: bool
    server_learning_rate: float
    averaging: Averaging
    limits: Limits
    wire_dtype: str
    weighted_by_key: str
    arrayrecord_key: str
    configrecord_key: str
    seed: int
    config_overrides: Mapping[str, Mapping[str, Any]]  # by name of the stage

    @property
    def max_widths(self) -> dict[str, int]:
        """The most units that each group may have."""
        return {
            name: max_width(group.size, group.growable, self.max_growth)
            for name, group in self.spec.groups.items()
        }


def check_settings(initialisation: str, max_growth: float, server_learning_rate: float) -> None:
    """Refuse values that are out of range, before anything is derived.

    Raises
    ------
    ValueError
        It names the argument.
    """
    if initialisation not in (COMMON, OWN):
        raise ValueError(
            f"initialisation was {initialisation!r}; it must be {COMMON!r} or {OWN!r}."
        )
    if not 1.0 <= max_growth < float("inf"):
        raise ValueError(f"max_growth was {max_growth}; it must be 1 or more.")
    if not 0.0 < server_learning_rate <= 1.0:
        raise ValueError(
            f"server_learning_rate was {server_learning_rate}; it must be above 0, at most 1."
        )


def check_weighted(weighted_units: bool, matcher: Matcher) -> None:
    """Refuse to weigh posterior means, which weigh all clients alike.

    Raises
    ------
    ValueError
        It names the arguments.
    """
    if weighted_units and getattr(matcher, "output", "mean") != "mean":
        raise ValueError(
            'weighted_units was True, but the matcher gives posterior means (output="posterior"), '
            'which weigh all clients alike: set weighted_units=False, or output="mean".'
        )


def log_settings(settings: RoundSettings) -> None:
    """Log the settings of a run as a tree."""
    groups = ", ".join(f"{name} ({g.size})" for name, g in settings.spec.groups.items())
    log(INFO, "\t├──> FedMA settings:")
    log(INFO, "\t│\t├── Groups: %s", groups)
    log(INFO, "\t│\t├── Stages of a round: %s", len(settings.plan))
    log(INFO, "\t│\t├── Matcher: %s", settings.matcher)
    log(INFO, "\t│\t├── Initialisation: %s", settings.initialisation)
    log(INFO, "\t│\t├── Growth: at most %s times", settings.max_growth)
    log(INFO, "\t│\t├── Averaging: %s", settings.averaging)
    log(INFO, "\t│\t├── Limits: %s", settings.limits)
    log(INFO, "\t│\t└── Precision on the wire: %s", settings.wire_dtype)
