"""Which clients' updates count in a stage, and for how much: one call for all bounds."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fedma_flwr.averaging.averages import Averaging
from fedma_flwr.averaging.client_update import ClientUpdate
from fedma_flwr.averaging.contradictions import contrary_moments
from fedma_flwr.averaging.integer_limits import bound_integers
from fedma_flwr.averaging.limits import Limits, bound_weights, oversized, scaled_to_bounds
from fedma_flwr.averaging.moment_limits import (
    at_most_usual,
    odd_kinds,
    oversized_moments,
    oversized_targets,
)
from fedma_flwr.averaging.unit_growth import bound_units
from fedma_flwr.matching.threads import using_threads
from fedma_flwr.structure import PermutationSpec


@using_threads(1)
def judge(
    spec: PermutationSpec,
    updates: Mapping[int, ClientUpdate],
    model: Mapping[str, Tensor],
    limits: Limits,
    averaging: Averaging,
    *,
    first_round: bool = False,
) -> tuple[dict[int, ClientUpdate], dict[int, str]]:
    """Refuse what is out of all proportion, and bound what the others weigh.

    Parameters
    ----------
    spec : PermutationSpec
        The model's spec.
    updates : mapping of int to ClientUpdate
        What the clients sent, by node.
    model : mapping of str to Tensor
        The last global model.
    limits : Limits
        How much larger and heavier than usual a client may be.
    averaging : Averaging
        A robust one refuses moments that contradict all others' as well.
    first_round : bool (default: False)
        Whether no round is complete yet: see `scaled_to_bounds`.

    Returns
    -------
    dict of int to ClientUpdate
        What counts, by node.
    dict of int to str
        Why a client is refused, by node.
    """
    updates = bound_integers(updates, model, limits.max_norm_ratio)
    if first_round:
        updates = scaled_to_bounds(spec, updates, model, limits.max_norm_ratio)
    refused = oversized(spec, updates, model, limits.max_norm_ratio)
    refused |= odd_kinds(updates)
    refused |= oversized_moments(updates, limits.max_norm_ratio)
    refused |= oversized_targets(updates, limits.max_norm_ratio)
    kept = {node: update for node, update in updates.items() if node not in refused}
    kept = bound_units(spec, kept, model, limits.max_norm_ratio)
    if averaging.robust and any(update.moments is not None for update in kept.values()):
        # Bounds first: whoever claims most examples would stand for all others.
        contrary: dict[int, str] = {}
        for alike in _by_inputs(kept):
            usual = at_most_usual(alike)
            kept |= usual
            contrary |= contrary_moments(bound_weights(usual, limits.max_weight_ratio))
        kept = {node: update for node, update in kept.items() if node not in contrary}
        refused |= contrary
    return bound_weights(kept, limits.max_weight_ratio), refused


def _by_inputs(updates: Mapping[int, ClientUpdate]) -> list[dict[int, ClientUpdate]]:
    """Updates with moments of equally many head inputs, together: those of one width."""
    groups: dict[int, dict[int, ClientUpdate]] = {}
    for node, update in updates.items():
        inputs = update.moments.inputs if update.moments is not None else 0
        groups.setdefault(inputs, {})[node] = update
    return list(groups.values())
