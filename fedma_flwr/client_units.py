"""What a client keeps in its own units, and where these are in what a message brings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from logging import WARNING
from typing import cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.supercore import log
from torch import Tensor

from fedma_flwr import protocol
from fedma_flwr.protocol import ClientError, Instruction, KeptState
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


def follow_units(
    tensors: ArrayRecord | Mapping[str, Tensor],
    message: Message,
    context: Context,
    *,
    prefix: str = "",
) -> dict[str, Tensor] | None:
    """Bring what a client saved in its last stage into the units of the model it is sent now.

    For state that lies unit by unit and that `fedma_mod` does not keep: momentum buffers, a head
    that is restored. The mod keeps ``FedMA(personal=...)`` by itself.

    Parameters
    ----------
    tensors : ArrayRecord or mapping of str to Tensor
        Under the names of the state dict, with their shapes: momentum under its parameter's name.
        They must have been saved in the last stage that this client took part in.
    message, context : Message and Context
        What the train function was called with.
    prefix : str (default: "")
        What the names lack: ``"head."`` if they are those of ``model.head.state_dict()``.

    Returns
    -------
    dict of str to Tensor or None
        Under the same names, in the present units; 0 (running variances: 1) at units that the
        client lacks. None if nothing is known about where its units are, since it has missed a
        round or lost its state: then begin anew.

    Raises
    ------
    ClientError
        If a name is no tensor of the model, or a shape is not that of the last stage.

    Examples
    --------
    >>> saved = context.state["momentum"]
    >>> if (momentum := follow_units(saved, message, context)) is not None:
    ...     restore(optimizer, momentum)
    """
    given = protocol.to_tensors(tensors) if isinstance(tensors, ArrayRecord) else dict(tensors)
    instruction = protocol.find_instruction(message.content)
    record = context.state.config_records.get(protocol.KEPT_STATE_KEY)
    if instruction is None:  # FedAvg's units stay where they are
        return given
    if (asked := _FOLLOWED.get()) is not None:
        asked.append(True)
    if record is None:
        return None
    moved = _follow(instruction, KeptState.from_record(record), given, prefix)
    return None if moved is None else {n.removeprefix(prefix): t for n, t in moved.items()}


def _follow(
    instruction: Instruction, kept: KeptState, given: Mapping[str, Tensor], prefix: str
) -> dict[str, Tensor] | None:
    spec = PermutationSpec.from_json(kept.spec)
    named = {f"{prefix}{name}": tensor for name, tensor in given.items()}
    if unknown := [name for name in named if name not in spec.axes]:
        raise ClientError(
            f"follow_units: the model has no tensors {unknown[:5]}. Names are those of the state "
            "dict; `prefix` says what they lack, as in prefix='head.'."
        )
    update = instruction.kind == protocol.UPDATE
    if not (update or instruction.follows):
        return None
    after, widths = dict(instruction.assignments), dict(instruction.widths)
    if update and instruction.stage > 0:
        after, widths = {**kept.assignments, **after}, {**kept.widths, **widths}
    try:
        return move_units(spec, named, before=kept.assignments, after=after, widths=widths)
    except SpecError as error:
        raise ClientError(
            f"follow_units: these are not of the client's last stage: {error}"
        ) from error


# ---------------------------------------------------------------------- what does not follow

_FOLLOWED: ContextVar[list[bool] | None] = ContextVar("_FOLLOWED", default=None)
_TOLD: set[str] = set()  # keys of context.state that this process has warned of


@contextmanager
def following(instruction: Instruction, context: Context) -> Iterator[None]:
    """Within this context a train function works; warn of copies that no longer fit their units.

    A copy is an ArrayRecord of the user's in ``context.state`` that held values of the model
    that the client trained in its last stage, under whatever names.
    """
    stale = _moved_copies(instruction, context)
    asked: list[bool] = []
    token = _FOLLOWED.set(asked)
    try:
        yield
    finally:
        _FOLLOWED.reset(token)
    for key, name in stale.items():
        if not asked:
            _tell(key, f"copied {name!r} in the last stage. Its units have moved since")


def note_copies(context: Context, instruction: Instruction, trained: Mapping[str, Tensor]) -> None:
    """Note which of the user's records hold values of the model that was just trained."""
    copies = {
        key: found
        for key, record in context.state.array_records.items()
        if not key.startswith("fedma.") and (found := _copied(record, trained))
    }
    for key, found in copies.items():
        head = f"{instruction.head_module}."
        if instruction.head_module and any(name.startswith(head) for name in found[1::2]):
            _tell(key, "copied the head in a stage in which it is zero, since it will be solved")
    context.state.pop(protocol.COPIES_KEY, None)
    if copies:
        context.state[protocol.COPIES_KEY] = ConfigRecord({**copies})


def _copied(record: ArrayRecord, trained: Mapping[str, Tensor]) -> list[str]:
    """Names in a record, each followed by the tensor of the model that it holds a copy of."""
    found: list[str] = []
    for own, tensor in protocol.to_tensors(record).items():
        names = [
            name
            for name, other in trained.items()
            if name.endswith(own.rpartition(".")[2])
            and tensor.numel() > 1
            and tensor.dtype == other.dtype
            and torch.equal(tensor, other)
        ]
        if names:
            found += [own, names[0]]
    return found


def _moved_copies(instruction: Instruction, context: Context) -> dict[str, str]:
    """Keys of copies whose units are elsewhere in the message, each with a tensor's name."""
    record = context.state.config_records.get(protocol.KEPT_STATE_KEY)
    copies = context.state.config_records.get(protocol.COPIES_KEY)
    if record is None or copies is None:
        return {}
    kept = KeptState.from_record(record)
    stale = {}
    for key in copies:
        pairs = cast(list[str], copies[key])
        saved = context.state.array_records.get(key, ArrayRecord())
        for own, name in zip(pairs[::2], pairs[1::2], strict=True):
            if own in saved and _has_moved(instruction, kept, name, protocol.to_tensor(saved[own])):
                stale[key] = name
    return stale


def _has_moved(instruction: Instruction, kept: KeptState, name: str, tensor: Tensor) -> bool:
    try:
        moved = _follow(instruction, kept, {name: tensor}, "")
    except ClientError:  # the user has put something else there
        return False
    return moved is None or not torch.equal(moved[name], tensor)


def _tell(key: str, what: str) -> None:
    if key not in _TOLD:
        _TOLD.add(key)
        log(
            WARNING,
            "context.state[%r] %s: put back as it is, it does not fit. Bring it along with "
            "fedma_flwr.follow_units, or let fedma_mod keep these tensors: FedMA(personal=...).",
            key,
            what,
        )
