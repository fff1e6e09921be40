"""What a message may make a client do: a client trusts no server with its memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from fedma_flwr import protocol
from fedma_flwr.protocol import ClientError, Instruction, KeptState
from fedma_flwr.structure import PermutationSpec, SpecError
from fedma_flwr.structure.unit_selection import check_units

#: A model may come to have this times the bytes that it had, unless the node's config says more.
#: A fully connected one has four times as many when all its layers have doubled.
MAX_GROWTH = 16.0
_MOMENTS = 2**30  # bytes that the moments of a head's inputs may take whatever the model's size


def max_growth(node_config: Mapping[str, Any]) -> float:
    """How many times its bytes a model may come to have, as the node's config says.

    Raises
    ------
    ClientError
        If that is no number of at least 1.
    """
    value = node_config.get(protocol.MAX_GROWTH_KEY, MAX_GROWTH)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 1:
        raise ClientError(
            f"The node's config has {protocol.MAX_GROWTH_KEY}={value!r}; it must be 1 or more."
        )
    return float(value)


def count_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of a model's tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def check_message(
    instruction: Instruction,
    kept: KeptState | None,
    tensors: Mapping[str, Tensor],
    new: Mapping[str, Tensor],
    growth: float,
) -> None:
    """Refuse a message that does not fit the model, before anything is allocated for it.

    Parameters
    ----------
    instruction : Instruction
        Of the message, ``update`` or ``full``.
    kept : KeptState or None
        What the client kept; None only with ``full``.
    tensors, new : mapping of str to Tensor
        The client's kept tensors, and the message's.
    growth : float
        See `max_growth`.

    Raises
    ------
    ClientError
        Says what does not fit.
    """
    try:
        _check_message(instruction, kept, tensors, new, growth)
    except SpecError as error:
        raise ClientError(str(error)) from error


def _check_message(
    instruction: Instruction,
    kept: KeptState | None,
    tensors: Mapping[str, Tensor],
    new: Mapping[str, Tensor],
    growth: float,
) -> None:
    full = instruction.kind == protocol.FULL or kept is None
    spec = PermutationSpec.from_json(instruction.spec if full or kept is None else kept.spec)
    asked = (*instruction.settled, *instruction.uploads, *instruction.estimates, *new)
    _refuse_unknown("tensors", asked, spec.axes)
    _refuse_unknown("groups", instruction.widths, spec.groups)
    check_units("assignments", instruction.assignments, instruction.widths)
    if full and new:
        spec.check(new)
    settled = dict(instruction.widths) if full or kept is None else kept.widths | instruction.widths
    if instruction.stage > 0:  # in a round's first stage nothing of it is matched yet
        spec.widths(new, known=settled)
    base = (kept.size if kept else 0) or count_bytes((tensors or new).values())
    if not full and instruction.stage > 0:
        _check_growth(spec, instruction, tensors, new, growth * base)
    _check_moments(instruction, {**tensors, **new}, growth * base)


def _refuse_unknown(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    if unknown := sorted(set(names) - set(known)):
        raise ClientError(
            f"The server names {what} that the spec lacks: {unknown[:3]} ({len(unknown)} in all)."
        )


def _check_growth(
    spec: PermutationSpec,
    instruction: Instruction,
    tensors: Mapping[str, Tensor],
    new: Mapping[str, Tensor],
    most: float,
) -> None:
    """What is not in the message is padded with zeros to its widths: so far and no further."""
    shapes = spec.shapes({**spec.widths(tensors), **instruction.widths})
    own = [name for name in tensors if name not in new]
    # An axis of no length hides how long the others are: it counts as one.
    wanted = sum(
        math.prod(max(length, 1) for length in shapes[n]) * tensors[n].element_size() for n in own
    )
    if wanted > most:
        raise _too_large("a model", wanted, most)


def _check_moments(instruction: Instruction, model: Mapping[str, Tensor], most: float) -> None:
    head = model.get(f"{instruction.head_module}.weight") if instruction.head_module else None
    if head is None or head.dim() < 2:
        return
    inputs = math.prod(head.shape[1:]) + 1
    if 8 * inputs**2 > max(most, _MOMENTS):
        raise _too_large("moments", 8 * inputs**2, max(most, _MOMENTS))


def _too_large(what: str, wanted: int, most: float) -> ClientError:
    return ClientError(
        f"The server asks for {what} of {wanted / 1e6:.3g} MB, but this client's model allows "
        f"{most / 1e6:.3g} MB. If it is meant to grow so far, start the SuperNode with a larger "
        f"{protocol.MAX_GROWTH_KEY} in its --node-config (default: {MAX_GROWTH:g})."
    )
