"""What `FedMA` makes of its arguments before anything is sent: the spec and the stages."""

from __future__ import annotations

from typing import Any

from torch import nn

from fedma_flwr.matching import Matcher
from fedma_flwr.robust import Averaging
from fedma_flwr.structure import (
    GroupsPerStage,
    PermutationSpec,
    SpecError,
    StagePlan,
    derive_spec,
    prove_spec,
)


def make_spec(
    model: nn.Module | None,
    example_inputs: tuple[Any, ...] | None,
    spec: PermutationSpec | None,
) -> PermutationSpec:
    """Derive the spec, or prove the one that was given; a spec alone is taken at its word."""
    if (model is None) != (example_inputs is None):
        raise ValueError(
            "`model` and `example_inputs` go together: FedMA(model=Net(), example_inputs=(x,)), "
            "where Net()(x) works."
        )
    if model is not None and example_inputs is not None:
        if spec is None:
            spec = derive_spec(model, example_inputs)
        else:
            spec = prove_spec(spec, model, example_inputs).spec
    if spec is None:
        raise ValueError("FedMA needs `model` and `example_inputs`, or `spec`.")
    if not spec.groups:
        raise SpecError("The spec has no groups, so there is nothing to match: use FedAvg.")
    return spec


def make_averaging(kind: str, trimmed_share: float, matcher: Matcher) -> Averaging:
    """The averaging of a run; a robust one excludes posterior means, which are sums."""
    averaging = Averaging(kind, trimmed_share)
    if averaging.robust and getattr(matcher, "output", "mean") == "posterior":
        raise ValueError(
            f"averaging was {kind!r}, but the matcher's output is 'posterior', which is made of "
            "all members' sum: give the matcher output='mean'."
        )
    return averaging


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
    later = {"groups_per_stage": groups_per_stage != 1, **later_configs}
    if given := [name for name, value in later.items() if value]:
        raise ValueError(
            f"one_shot=True has one exchange and no later stage, so that {', '.join(given)} would "
            "have no effect: leave it out, or leave out one_shot."
        )
    return StagePlan.one_shot(spec)
