"""What stays the same from round to round: `FedMA`'s arguments, checked and worked out."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from logging import INFO
from typing import Any

from flwr.supercore import log

from fedma_flwr.averaging import Averaging, HeadSolver, Limits
from fedma_flwr.matching import Matcher
from fedma_flwr.server.arguments import (
    AUTO,
    AVERAGED,
    SOLVED,
    TRAINED,
)
from fedma_flwr.server.cohort import SeededCohort
from fedma_flwr.server.head_choice import Subject, make_solver
from fedma_flwr.server.personal_tensors import Participation
from fedma_flwr.server.round_cost import cost_in_words
from fedma_flwr.server.setting_texts import matcher_text, spec_text
from fedma_flwr.server.width_selection import POPULAR
from fedma_flwr.structure import (
    PermutationSpec,
    StagePlan,
    has_several_heads,
)
from fedma_flwr.structure.stages import HEAD, RETRAIN


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
    own_growth: float = 1.0
    head_may_be_averaged: bool = False  # where the loss turns out to be none that solves it
    start_may_change: bool = False  # local training goes on from another head if features fall
    head_memory: int = 0  # rounds that a client's moments stand in for it
    several_heads: bool = False  # then class counts must name theirs
    taking_part: Participation | None = None  # None: all tensors, in all clients alike
    width_selection: str = POPULAR

    @property
    def max_widths(self) -> dict[str, int]:
        """The most units that each group may have."""
        return {
            name: max_width(group.size, group.growable, self.max_growth)
            for name, group in self.spec.groups.items()
        }

    @property
    def own_widths(self) -> dict[str, int]:
        """The most units that a group may have in the first weights of a client's own."""
        most = min(self.own_growth, self.max_growth)
        return {
            name: max_width(group.size, group.growable, most)
            for name, group in self.spec.groups.items()
        }

    @property
    def personal(self) -> tuple[str, ...]:
        """Tensors that stay with the client."""
        return self.taking_part.personal if self.taking_part else ()

    @property
    def partial(self) -> bool:
        """Whether clients' models have tensors that the initial arrays lack."""
        return self.taking_part is not None and bool(self.taking_part.absent)

    @property
    def client_spec(self) -> PermutationSpec:
        """The spec of what clients hold: personal tensors too."""
        return self.taking_part.clients if self.taking_part else self.spec

    @property
    def initial_parameters(self) -> int:
        """Shared numbers in the initial model."""
        return sum(math.prod(shape) for shape in self.spec.shapes().values())

    def trains_nothing(self, stage: int) -> bool:
        """Whether clients only pass over their examples: the head will be solved, all else is set.

        That holds for the moments, and before them for running statistics.
        """
        settled = {*self.plan.settled_before(stage), *self.spec.head, *self.spec.statistics}
        # What has no axes by then counts the batches of a norm.
        free = [name for name, axes in self.spec.axes.items() if axes and name not in settled]
        trained = free or (self.personal and not self.plan[stage].solves_head)
        return self.solver is not None and stage > 0 and not trained

    def head_module(self, stage: int) -> str:
        """Path of the head where its moments are wanted; else empty."""
        return self.solver.head.module if self.solver and self.plan[stage].solves_head else ""

    def moments(self, stage: int, widths: Mapping[str, int]) -> tuple[int, int] | None:
        """Inputs and outputs of the head, where its moments are wanted."""
        if self.solver is None or not self.plan[stage].solves_head:
            return None
        outputs, inputs, *_ = self.spec.shapes(widths)[self.solver.head.weight]
        return inputs, outputs

    def fingerprint(self) -> dict[str, str]:
        """All settings as text: what must be the same in a resumed run."""
        texts = {f.name: str(getattr(self, f.name)) for f in fields(self)}
        del texts["several_heads"]  # the model says it
        del texts["head_may_be_averaged"]  # the loss says it
        del texts["start_may_change"]  # it changes nothing in runs that go well
        for name, plain in _PLAIN.items():
            if getattr(self, name) == plain:
                del texts[name]
        if self.solver is None:  # as in the checkpoints of runs that knew no other
            del texts["solver"]
        if self.taking_part is None:
            del texts["taking_part"]
        else:
            texts["taking_part"] = f"{self.personal} {self.taking_part.absent}"
        return {
            **texts,
            "plan": repr(self.plan),
            "matcher": matcher_text(self.matcher),
            "spec": spec_text(self.spec),
        }


#: Settings that no checkpoint names where they are these.
_PLAIN = {"own_growth": 1.0, "head_memory": 0, "width_selection": POPULAR}
#: Arguments of `FedMA` that are settings as they are.
_AS_GIVEN = (
    "matcher",
    "initialisation",
    "max_growth",
    "own_growth",
    "head_memory",
    "weighted_units",
    "server_learning_rate",
    "wire_dtype",
    "width_selection",
)


def max_width(size: int, growable: bool, max_growth: float) -> int:
    """The most units that a group of the given initial size may have."""
    return max(size, math.floor(size * max_growth + 1e-9)) if growable else size


def make_settings(
    spec: PermutationSpec,
    arguments: Mapping[str, Any],
    cohort: SeededCohort,
    *,
    present: Collection[str] | None = None,
    subject: Subject = (None, None),
) -> RoundSettings:
    """What stays the same from round to round. Long because each setting has a line.

    Parameters
    ----------
    spec : PermutationSpec
        The whole model's spec.
    arguments : mapping of str to value
        `FedMA`'s own but the model's, by name, checked.
    cohort : SeededCohort
        Has the seed and the keys of records.
    present : collection of str, optional
        Names of the initial arrays. None: all tensors of the model.
    subject : pair, optional
        The model and its example inputs, if the spec is not all that was given.

    Raises
    ------
    ValueError
        If `personal` or `groups_per_stage` is out of range, or the model's head cannot be solved.
    """
    rule = Averaging(arguments["averaging"], arguments["trimmed_share"])
    ratios = arguments["max_norm_ratio"], arguments["max_weight_ratio"]
    whole, taking_part = spec, Participation.of(spec, arguments["personal"], present)
    spec = taking_part.shared
    head = TRAINED if arguments["one_shot"] else arguments["head"]
    away = [name for name in whole.head if name not in spec.head]
    solver = make_solver(
        spec, head, arguments["head_start"], away, robust=rule.robust, subject=subject
    )
    return RoundSettings(
        spec=spec,
        plan=_make_plan(spec, arguments, solver),
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
        head_may_be_averaged=arguments["head"] == AUTO,
        start_may_change=(
            solver is not None and solver.steps_from_trained and arguments["head_start"] == AUTO
        ),
        several_heads=has_several_heads(spec, *subject),
        taking_part=taking_part if spec is not whole else None,
        **{name: arguments[name] for name in _AS_GIVEN},
    )


def _make_plan(
    spec: PermutationSpec, arguments: Mapping[str, Any], solver: HeadSolver | None
) -> StagePlan:
    if arguments["one_shot"]:
        return StagePlan.one_shot(spec)
    return StagePlan.build(
        spec,
        arguments["groups_per_stage"],
        reestimate_statistics=arguments["reestimate_statistics"],
        solved_head=solver is not None,
        averaged_head=arguments["head_start"] == AVERAGED
        or (solver is not None and solver.steps_from_trained),
    )


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
    if settings.personal:
        log(INFO, "\t│\t├── Personal: %s", ", ".join(settings.personal))
    log(INFO, "\t│\t├── Averaging: %s", settings.averaging)
    log(INFO, "\t│\t├── Limits: %s", settings.limits)
    log(INFO, "\t│\t└── Precision on the wire: %s", settings.wire_dtype)
