"""What stays the same from round to round: `FedMA`'s arguments, checked and worked out."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from logging import INFO, WARNING
from typing import Any

from flwr.supercore import log
from torch import nn

from fedma_flwr.averaging import Averaging, HeadSolver, Limits
from fedma_flwr.matching import Matcher
from fedma_flwr.server.arguments import AUTO, AVERAGED, SOLVED, TRAINED, check_model, check_spec
from fedma_flwr.server.cohort import SeededCohort
from fedma_flwr.server.round_cost import cost_in_words
from fedma_flwr.structure import (
    PermutationSpec,
    StagePlan,
    derive_spec,
    linear_head,
    prove_spec,
)
from fedma_flwr.structure.stages import HEAD, RETRAIN

_ADDRESS = re.compile(r" at 0x[0-9A-Fa-f]+")


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
    solver: HeadSolver | None = None  # None: the head is trained

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

    def trains_nothing(self, stage: int) -> bool:
        """Whether clients only pass over their examples: the head will be solved, all else is set.

        That holds for the moments, and before them for running statistics.
        """
        settled = {*self.plan.settled_before(stage), *self.spec.head, *self.spec.statistics}
        # What has no axes by then counts the batches of a norm.
        free = [name for name, axes in self.spec.axes.items() if axes and name not in settled]
        return self.solver is not None and stage > 0 and not free

    def fingerprint(self) -> dict[str, str]:
        """All settings as text: what must be the same in a resumed run."""
        texts = {f.name: str(getattr(self, f.name)) for f in fields(self)}
        if self.solver is None:  # as in the checkpoints of runs that knew no other
            del texts["solver"]
        return {
            **texts,
            "plan": repr(self.plan),
            "matcher": _as_text(self.matcher),
            "spec": _shape_of(self.spec),
        }


#: How large the solved head is that local training goes on from, times a new linear layer.
START_NORM = 4.0
#: Arguments of `FedMA` that are settings as they are.
_AS_GIVEN = (
    "matcher",
    "initialisation",
    "max_growth",
    "weighted_units",
    "server_learning_rate",
    "wire_dtype",
)


def max_width(size: int, growable: bool, max_growth: float) -> int:
    """The most units that a group of the given initial size may have."""
    return max(size, math.floor(size * max_growth + 1e-9)) if growable else size


def make_spec(
    model: nn.Module | None,
    example_inputs: tuple[Any, ...] | None,
    spec: PermutationSpec | None,
) -> PermutationSpec:
    """Derive the spec, or prove the one that was given; a spec alone is taken at its word."""
    check_model(model, example_inputs, spec)
    if model is not None and example_inputs is not None:
        if spec is None:
            spec = derive_spec(model, example_inputs)
        else:
            spec = prove_spec(spec, model, example_inputs).spec
    return check_spec(spec)


def make_settings(
    spec: PermutationSpec, arguments: Mapping[str, Any], cohort: SeededCohort
) -> RoundSettings:
    """What stays the same from round to round.

    Parameters
    ----------
    spec : PermutationSpec
        The model's spec.
    arguments : mapping of str to value
        `FedMA`'s own but the model's, by name, checked.
    cohort : SeededCohort
        Has the seed and the keys of records.

    Raises
    ------
    ValueError
        If `groups_per_stage` is out of range, or the model's head cannot be solved.
    """
    rule = Averaging(arguments["averaging"], arguments["trimmed_share"])
    ratios = arguments["max_norm_ratio"], arguments["max_weight_ratio"]
    solver = (
        None
        if arguments["one_shot"]
        else make_solver(spec, arguments["head"], arguments["head_start"])
    )
    return RoundSettings(
        spec=spec,
        plan=_make_plan(spec, arguments, solved_head=solver is not None),
        averaging=rule,
        limits=Limits.of(*ratios, robust=rule.robust),
        weighted_by_key=cohort.weighted_by_key,
        arrayrecord_key=cohort.arrayrecord_key,
        configrecord_key=cohort.configrecord_key,
        seed=cohort.seed,
        config_overrides={
            RETRAIN: dict(arguments["retrain_config"] or {}),
            HEAD: dict(arguments["head_config"] or {}),
        },
        solver=solver,
        **{name: arguments[name] for name in _AS_GIVEN},
    )


def _make_plan(
    spec: PermutationSpec, arguments: Mapping[str, Any], *, solved_head: bool
) -> StagePlan:
    if arguments["one_shot"]:
        return StagePlan.one_shot(spec)
    return StagePlan.build(
        spec,
        arguments["groups_per_stage"],
        reestimate_statistics=arguments["reestimate_statistics"],
        solved_head=solved_head,
        averaged_head=arguments["head_start"] == AVERAGED,
    )


def make_solver(spec: PermutationSpec, head: str, start: str) -> HeadSolver | None:
    """How the head is solved; None if it is trained.

    Raises
    ------
    ValueError
        If it was to be solved and cannot be: the message says why.
    """
    if head == TRAINED:
        return None
    found = linear_head(spec)
    if isinstance(found, str):
        if head == AUTO:
            log(WARNING, "The head is trained, it cannot be solved: %s.", found)
            return None
        raise ValueError(
            f"head was {SOLVED!r}, but this model's head cannot be solved: {found}. Use "
            f"head={TRAINED!r}."
        )
    return HeadSolver(found, start_norm=START_NORM if start == SOLVED else 0.0)


def log_settings(settings: RoundSettings) -> None:
    """Log the settings of a run as a tree."""
    groups = ", ".join(f"{name} ({g.size})" for name, g in settings.spec.groups.items())
    log(INFO, "\t├──> FedMA settings:")
    log(INFO, "\t│\t├── Groups: %s", groups)
    log(INFO, "\t│\t├── Stages: %s", str(settings.plan).replace("\n", "\n\t│\t│\t"))
    cost = cost_in_words(settings.plan, settings.config_overrides, settings.trains_nothing)
    log(INFO, "\t│\t├── A round costs: %s", cost)
    log(INFO, "\t│\t├── Matcher: %s", settings.matcher)
    log(INFO, "\t│\t├── Initialisation: %s", settings.initialisation)
    log(INFO, "\t│\t├── Growth: at most %s times", settings.max_growth)
    log(INFO, "\t│\t├── Head: %s", TRAINED if settings.solver is None else SOLVED)
    log(INFO, "\t│\t├── Averaging: %s", settings.averaging)
    log(INFO, "\t│\t├── Limits: %s", settings.limits)
    log(INFO, "\t│\t└── Precision on the wire: %s", settings.wire_dtype)


def _shape_of(spec: PermutationSpec) -> str:
    """A spec as text, as checkpoints have it: which variance is whose follows from the model."""
    parts = json.loads(spec.to_json())
    parts.pop("variances", None)
    return json.dumps(parts, separators=(",", ":"))


def _as_text(matcher: Matcher) -> str:
    """A matcher as text that is the same in another process: no address of an object."""
    kind = type(matcher)
    if kind.__repr__ is object.__repr__:
        text = f"{kind.__qualname__}({getattr(matcher, '__dict__', '')})"
    else:
        text = str(matcher)
    return _ADDRESS.sub("", text)  # of what the matcher has
