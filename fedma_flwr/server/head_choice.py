"""Whether a model's head is solved, and how."""

from __future__ import annotations

from collections.abc import Collection
from logging import WARNING

from flwr.supercore import log
from torch import nn

from fedma_flwr.averaging import HeadSolver
from fedma_flwr.server.arguments import AUTO, AVERAGED, SOLVED, TRAINED
from fedma_flwr.structure import LinearHead, PermutationSpec, linear_head
from fedma_flwr.structure.model_copies import Inputs
from fedma_flwr.structure.not_reached import not_reached
from fedma_flwr.structure.output_heads import why_not_solved

#: How large the solved head is that local training goes on from, times a new linear layer.
START_NORM = 4.0

_TRAINED = (
    "The head is trained, it cannot be solved: %s. That is an exchange of its own, and costs "
    "clients as many epochs again. With one_shot=True it is averaged with all else, as in FedAvg."
)
#: A model and inputs for it, if there are any.
Subject = tuple[nn.Module | None, Inputs | None]


def make_solver(
    spec: PermutationSpec,
    head: str,
    start: str,
    away: Collection[str] = (),
    *,
    robust: bool = False,
    subject: Subject = (None, None),
) -> HeadSolver | None:
    """How the head is solved; None if it is trained. `away` are the tensors of it not shared.

    With a robust average by regression alone: what a client says that a head expects cannot be
    compared with what others say.

    Raises
    ------
    ValueError
        If it was to be solved and cannot be: the message says why.
    """
    if head == TRAINED:
        return None
    found = linear_head(spec) if not away else f"{', '.join(away)} are not shared"
    if away and head == AUTO:  # as it was asked for
        return None
    if isinstance(found, LinearHead) and head == AUTO:  # who says "solved" knows the model
        found = _why_rather_trained(spec, found, subject) or found
    if isinstance(found, str):
        if head == AUTO:
            log(WARNING, _TRAINED, found)
            return None
        raise ValueError(
            f"head was {SOLVED!r}, but this model's head cannot be solved: {found}. Use "
            f"head={TRAINED!r}."
        )
    return HeadSolver(
        found,
        start_norm=0.0 if start == AVERAGED else START_NORM,
        steps_from_trained=not robust,
    )


def _why_rather_trained(spec: PermutationSpec, head: LinearHead, subject: Subject) -> str:
    """Why a linear head had better not be solved, for all that is known; empty if nothing is."""
    if outside := not_reached(spec, trainable_only=True):
        return (
            f"forward does not reach {outside[0]!r}, so that the loss may be taken elsewhere; "
            f"if it is not, say head={SOLVED!r}"
        )
    return why_not_solved(spec, head.module, *subject)
