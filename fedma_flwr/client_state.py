"""What a client holds: the model that it keeps between stages, and what a message adds to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from flwr.app import ArrayRecord, Context, Message
from torch import Tensor

from fedma_flwr import protocol
from fedma_flwr.client_bounds import check_message, count_bytes, max_growth
from fedma_flwr.client_units import own_personal
from fedma_flwr.protocol import Instruction, KeptState
from fedma_flwr.structure import PermutationSpec


def receive(
    message: Message, context: Context, instruction: Instruction
) -> tuple[KeptState, dict[str, Tensor]] | None:
    """What the client holds now, put into the message; None if that takes more than was sent."""
    kept, tensors = read_kept(context)
    if instruction.kind == protocol.UPDATE and (kept is None or kept.token != instruction.needs):
        return None
    received = message.content.array_records.get(instruction.arrays_key, ArrayRecord())
    new = protocol.to_tensors(received)
    if instruction.kind == protocol.FULL and new:
        new |= own_personal(instruction, kept, tensors, new)
        if any(name not in new for name in instruction.personal):
            return None
    check_message(instruction, kept, tensors, new, max_growth(context.node_config))
    state, merged = merge(instruction, kept, tensors, new)
    _hand_on(message, instruction, merged)
    return state, merged


def _hand_on(message: Message, instruction: Instruction, merged: Mapping[str, Tensor]) -> None:
    """Put the full model into a message for the train function."""
    if merged:
        message.content[instruction.arrays_key] = protocol.to_arrays(merged)
    else:  # it starts from weights of its own
        message.content.pop(instruction.arrays_key, None)
    message.content[protocol.FEDMA_KEY] = replace(instruction, merged=True).to_record()


def merge(
    instruction: Instruction,
    kept: KeptState | None,
    tensors: Mapping[str, Tensor],
    new: Mapping[str, Tensor],
) -> tuple[KeptState, dict[str, Tensor]]:
    """What a client holds once a message has arrived.

    Parameters
    ----------
    instruction : Instruction
        Of the message, ``update`` or ``full``.
    kept : KeptState or None
        What the client kept; None only with ``full``.
    tensors : mapping of str to Tensor
        The client's kept tensors.
    new : mapping of str to Tensor
        The message's tensors.

    Returns
    -------
    KeptState
        With the token that the instruction gives.
    dict of str to Tensor
        The full model for the train function; empty if clients start from their own weights.
    """
    assignments, widths = dict(instruction.assignments), dict(instruction.widths)
    if instruction.kind == protocol.FULL or kept is None:
        return KeptState(instruction.gives, instruction.spec, assignments, widths), dict(new)
    spec = PermutationSpec.from_json(kept.spec)
    merged = {**tensors, **new}
    if instruction.stage == 0:  # a new round: back to the client's own units
        merged = spec.select(merged, kept.assignments, kept.widths)
    else:
        own = {name: tensor for name, tensor in merged.items() if name not in new}
        merged.update(spec.expand(own, assignments, widths))
        assignments = {**kept.assignments, **assignments}
        widths = {**kept.widths, **widths}
    return KeptState(instruction.gives, kept.spec, assignments, widths, kept.size), merged


def read_kept(context: Context) -> tuple[KeptState | None, dict[str, Tensor]]:
    """What the client keeps; None if there is nothing."""
    record = context.state.config_records.get(protocol.KEPT_STATE_KEY)
    arrays = context.state.array_records.get(protocol.KEPT_ARRAYS_KEY)
    if record is None or arrays is None:
        return None, {}
    return KeptState.from_record(record), protocol.to_tensors(arrays)


def keep(context: Context, state: KeptState, tensors: Mapping[str, Tensor]) -> None:
    """Keep a state and the model that belongs to it."""
    state = replace(state, size=state.size or count_bytes(tensors.values()))
    context.state[protocol.KEPT_ARRAYS_KEY] = protocol.to_arrays(tensors)
    context.state[protocol.KEPT_STATE_KEY] = state.to_record()
