"""What stays the same from round to round: `FedMA`'s arguments, checked and worked out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from logging import INFO
from typing import Any

from flwr.supercore import log
from torch import nn

from fedma_flwr.averaging import Averaging, Limits
from fedma_flwr.matching import Matcher
from fedma_flwr.protocol import HEAD, RETRAIN
from fedma_flwr.server.arguments import check_model, check_one_shot, check_spec
from fedma_flwr.structure import (
    GroupsPerStage,
    PermutationSpec,
    StagePlan,
    derive_spec,
    prove_spec,
)


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

    @property
    def initial_parameters(self) -> int:
        """Numbers in the initial model."""
        return sum(math.prod(shape) for shape in self.spec.shapes().values())

    def fingerprint(self) -> dict[str, str]:
        """All settings as text: what must be the same in a resumed run."""
        texts = {f.name: str(getattr(self, f.name)) for f in fields(self)}
        return {**texts, "matcher": _as_text(self.matcher), "spec": self.spec.to_json()}


def max_width(size: int, growable: bool, max_growth: float) -> int:
    """The most units that a group of the given initial size may have."""
    return max(size, math.floor(size * max_growth + 1e-9)) if growable else size


def make_spec(
    model: nn.Module | None,
    example_inputs: tuple[Any, ...] | None,
    spec: PermutationSpec | None,
) -> PermutationSpec:
    """Derive the spec, or prove the one that was given; a spec alone is taken at its word."""
    check_model(model, example_inputs)
    if model is not None and example_inputs is not None:
        if spec is None:
            spec = derive_spec(model, example_inputs)
        else:
            spec = prove_spec(spec, model, example_inputs).spec
    return check_spec(spec)


def make_plan(
    spec: PermutationSpec,
    *,
    one_shot: bool,
    groups_per_stage: GroupsPerStage,
    reestimate_statistics: bool,
    later_configs: dict[str, Any],
) -> StagePlan:
    """Plan the stages of a round.

    Parameters
    ----------
    spec : PermutationSpec
        The model's spec.
    one_shot, groups_per_stage, reestimate_statistics
        Those of `FedMA`.
    later_configs : dict of str to mapping or None
        The arguments that are about stages which one-shot matching does not have, by name.

    Raises
    ------
    ValueError
        If an argument is out of range, or has no meaning with `one_shot`.
    """
    if not one_shot:
        return StagePlan.build(spec, groups_per_stage, reestimate_statistics=reestimate_statistics)
    check_one_shot({"groups_per_stage": groups_per_stage != 1, **later_configs})
    return StagePlan.one_shot(spec)


def by_stage_name(
    retrain_config: Mapping[str, Any] | None, head_config: Mapping[str, Any] | None
) -> dict[str, dict[str, Any]]:
    """What overrides the train config, by the name of the stage."""
    return {RETRAIN: dict(retrain_config or {}), HEAD: dict(head_config or {})}


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


def _as_text(matcher: Matcher) -> str:
    """A matcher as text that is the same in another process: no address of an object."""
    kind = type(matcher)
    if kind.__repr__ is not object.__repr__:
        return str(matcher)
    return f"{kind.__qualname__}({getattr(matcher, '__dict__', '')})"
