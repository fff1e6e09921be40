"""What a client keeps in its own units, and where these are in what a message brings."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fedma_flwr.protocol import Instruction, KeptState
from fedma_flwr.structure import PermutationSpec, SpecError
from fedma_flwr.structure.unit_moves import move_units


def own_personal(
    instruction: Instruction,
    kept: KeptState | None,
    tensors: Mapping[str, Tensor],
    new: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """The client's personal tensors in the units of a message; empty if none fit.

    Parameters
    ----------
    instruction : Instruction
        Of the message, ``full`` or ``evaluate``.
    kept : KeptState or None
        What the client kept.
    tensors : mapping of str to Tensor
        Its kept tensors.
    new : mapping of str to Tensor
        The message's tensors.
    """
    if kept is None or not instruction.follows:
        return {}
    spec = PermutationSpec.from_json(kept.spec)
    try:
        moved = move_units(
            spec,
            {name: tensors[name] for name in instruction.personal if name in tensors},
            before=kept.assignments,
            after=instruction.assignments,
            widths=instruction.widths,
        )
        spec.widths({**new, **moved})
    except (SpecError, KeyError):  # of another run, or narrower than what the server sends
        return {}
    return moved
