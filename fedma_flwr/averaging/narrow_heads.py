"""The solved heads of a round with narrow clients: the whole model's, and one for each width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedma_flwr.averaging.client_update import ClientUpdate
from fedma_flwr.averaging.head import HeadSolver
from fedma_flwr.averaging.model_moments import Measured, ModelMoments
from fedma_flwr.averaging.outcome import NarrowHead, StageOutcome
from fedma_flwr.averaging.robust import lower_median
from fedma_flwr.matching.threads import threads_for, using_threads
from fedma_flwr.structure import PermutationSpec

_WHOLE = ""  # the name of the whole model


def solve_narrow_stage(
    spec: PermutationSpec,
    updates: Sequence[ClientUpdate],
    widths: Mapping[str, int],
    solver: HeadSolver,
    dtype: torch.dtype,
    *,
    estimates: bool = True,
) -> StageOutcome:
    """Solve the head of the whole model, and that of every narrow model that a client holds.

    Long because names, places and shapes of the models are worked out here, each in a line.

    Parameters
    ----------
    spec : PermutationSpec
        The model's spec.
    updates : sequence of ClientUpdate
        With moments; those of narrow clients say which units they hold.
    widths : mapping of str to int
        The global width of every group.
    solver : HeadSolver
        What to solve, and how: by regression alone, since heads of several widths have no step in
        common.
    dtype : torch.dtype
        Of the heads.
    estimates : bool (default: True)
        Whether what clients have not measured is estimated; see `ModelMoments`.
    """
    units: dict[str, Mapping[str, Tensor]] = {_WHOLE: {}}
    measured = []
    for update in updates:
        models = {_name(own) if own else _WHOLE: own for own in (update.held, *update.parts)}
        units.update(models)
        if update.moments is not None:
            measured.append(Measured(tuple(models), update.moments, update.examples))
    axis = spec.axes[solver.head.weight][1]
    places = {name: axis.positions(own, widths) for name, own in units.items()}
    moments = ModelMoments(measured, places, len(places[_WHOLE]), estimates=estimates)
    positions = lower_median([own.moments.examples for own in measured])
    shapes = {name: _shape(spec, solver, own, widths) for name, own in units.items()}
    with using_threads(threads_for(len(places[_WHOLE]) ** 3)):
        found = {n: solver.solve_total(moments.of(n), shapes[n], {}, positions) for n in units}
    whole = found.pop(_WHOLE)
    heads = (
        NarrowHead(dict(units[n]), _cast(head.tensors, dtype), _cast(head.local_head, dtype))
        for n, head in found.items()
    )
    return StageOutcome(
        _cast(whole.tensors, dtype),
        tuple({} for _ in updates),
        head_solved=True,
        local_head=_cast(whole.local_head, dtype),
        unexplained=whole.unexplained,
        narrow_heads=tuple(heads),
    )


def _shape(
    spec: PermutationSpec,
    solver: HeadSolver,
    units: Mapping[str, Tensor],
    widths: Mapping[str, int],
) -> tuple[int, ...]:
    """The shape of a model's head."""
    own = {group: len(held) for group, held in units.items()}
    return spec.shapes({**widths, **own})[solver.head.weight]


def _name(units: Mapping[str, Tensor]) -> str:
    """Models of the same units have the same name."""
    return repr([(group, own.tolist()) for group, own in sorted(units.items())])


def _cast(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}
