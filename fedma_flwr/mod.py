"""`fedma_mod`: the Flower mod that lets an ordinary train function take part in FedMA's stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from logging import ERROR
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore import log
from torch import Tensor

from fedma_flwr import protocol
from fedma_flwr.client_moments import ADVICE, HeadMomentsHook, collecting
from fedma_flwr.incompatible_mods import mods_around, why_not
from fedma_flwr.protocol import ClientError, Instruction, KeptState, Report
from fedma_flwr.structure import PermutationSpec


def fedma_mod(
    message: Message, context: Context, call_next: Callable[[Message, Context], Message]
) -> Message:
    """Prepare a stage for the train function, and its reply for the server.

    It merges each message with the model that the client keeps in ``context.state``, hands on one
    full ArrayRecord, keeps the result, and strips the reply down to what the stage asked for.
    Messages of other strategies pass untouched.

    Parameters
    ----------
    message : Message
        From any strategy.
    context : Context
        The client's context; keys that start with ``fedma.`` belong to this mod.
    call_next : callable
        The next mod or the train function.

    Returns
    -------
    Message
        The stripped reply, or an error reply that names the cause.

    Examples
    --------
    >>> from flwr.clientapp import ClientApp
    >>> app = ClientApp(mods=[fedma_mod])
    """
    instruction = protocol.find_instruction(message.content)
    if instruction is None:
        return call_next(message, context)
    if (obstacle := _obstacle(instruction, call_next)) is not None:
        return _refuse(message, obstacle)
    if instruction.kind == protocol.HELLO:
        # Others' mods look for FedAvg's records in a reply.
        records = {protocol.ARRAYS_KEY: ArrayRecord(), protocol.METRICS_KEY: MetricRecord()}
        return _report(message, Report(protocol.HELLO, client_key=_client_key(context)), records)
    try:
        return _run_stage(message, context, instruction, call_next)
    except ClientError as error:
        return _refuse(message, str(error))
    except Exception as error:  # whatever the user's code raises must reach the server in words
        log(ERROR, "FedMA stage failed", exc_info=True)
        return _refuse(message, f"{type(error).__name__}: {error}{_way_out(instruction)}")


def _obstacle(
    instruction: Instruction, call_next: Callable[[Message, Context], Message]
) -> str | None:
    """Why no stage can be done here at all."""
    if instruction.version != protocol.VERSION:
        return _version_mismatch(instruction.version)
    # No stages follow where FedAvg says hello, which goes well with all mods.
    name = mods_around(call_next) if instruction.stages else None
    return None if name is None else why_not(name)


def _way_out(instruction: Instruction) -> str:
    """What else a client can do in a stage whose demands its train function may not meet."""
    if not instruction.head_module:
        return ""
    return (
        " (raised in the head stage, where all but the head is frozen and nothing is trained: "
        f"if that is why, {ADVICE})"
    )


def _run_stage(
    message: Message,
    context: Context,
    instruction: Instruction,
    call_next: Callable[[Message, Context], Message],
) -> Message:
    kept, tensors = _kept(context)
    if instruction.kind == protocol.UPDATE and (kept is None or kept.token != instruction.needs):
        return _report(message, Report(protocol.LOST, holds=kept.token if kept else ""))
    received = message.content.array_records.get(instruction.arrays_key, ArrayRecord())
    state, merged = merge(instruction, kept, tensors, protocol.to_tensors(received))
    _hand_on(message, instruction, merged)

    with collecting(instruction.head_module) as hook:
        reply = call_next(message, context)
    _check_reply(reply)
    if reply.has_error():
        return reply
    trained = protocol.to_tensors(next(iter(reply.content.array_records.values())))
    if protocol.GRAM_KEY not in trained:  # what head_moments gave is no model
        _check_trained(PermutationSpec.from_json(state.spec), instruction, merged, trained)
    uploads = _uploads(instruction, trained, hook)
    # The train function may have replaced context.state: write to the one that is there now.
    # Where moments are taken nothing is trained, and the head will be another.
    _keep(context, state, merged if instruction.head_module else trained)
    # Under the names that the train function has given them, for mods before this one.
    records = {n: uploads if n in reply.content.array_records else r for n, r in _records(reply)}
    return _report(message, Report(protocol.DONE, holds=state.token), records)


def _hand_on(message: Message, instruction: Instruction, merged: Mapping[str, Tensor]) -> None:
    """Put the full model into a message for the train function."""
    if merged:
        message.content[instruction.arrays_key] = protocol.to_arrays(merged)
    else:  # it starts from weights of its own
        message.content.pop(instruction.arrays_key, None)
    message.content[protocol.FEDMA_KEY] = replace(instruction, merged=True).to_record()


def _uploads(
    instruction: Instruction, trained: Mapping[str, Tensor], hook: HeadMomentsHook
) -> ArrayRecord:
    """What the stage has asked for: tensors, or the moments of the head's inputs."""
    if instruction.head_module:
        return protocol.to_arrays(trained if protocol.GRAM_KEY in trained else hook.moments())
    sent = {name: trained[name] for name in instruction.uploads}
    return protocol.to_arrays(sent, instruction.wire_dtype)


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
        merged = spec.select(merged, kept.assignments)
    else:
        own = {name: tensor for name, tensor in merged.items() if name not in new}
        merged.update(spec.expand(own, assignments, widths))
        assignments = {**kept.assignments, **assignments}
        widths = {**kept.widths, **widths}
    return KeptState(instruction.gives, kept.spec, assignments, widths), merged


def _kept(context: Context) -> tuple[KeptState | None, dict[str, Tensor]]:
    record = context.state.config_records.get(protocol.KEPT_STATE_KEY)
    arrays = context.state.array_records.get(protocol.KEPT_ARRAYS_KEY)
    if record is None or arrays is None:
        return None, {}
    return KeptState.from_record(record), protocol.to_tensors(arrays)


def _keep(context: Context, state: KeptState, tensors: Mapping[str, Tensor]) -> None:
    context.state[protocol.KEPT_ARRAYS_KEY] = protocol.to_arrays(tensors)
    context.state[protocol.KEPT_STATE_KEY] = state.to_record()


def _records(reply: Message) -> list[tuple[str, Any]]:
    return [(name, record) for name, record in reply.content.items() if name != protocol.FEDMA_KEY]


def _check_reply(reply: Any) -> None:
    """Refuse what is no reply, or has not the only ArrayRecord and the only MetricRecord."""
    if not isinstance(reply, Message):
        raise ClientError(
            f"The train function returned {reply!r:.100} instead of a Message: end it with "
            "`return Message(content=RecordDict({...}), reply_to=msg)`."
        )
    if reply.has_error():
        return
    arrays, metrics = len(reply.content.array_records), len(reply.content.metric_records)
    if arrays != 1 or metrics != 1:
        raise ClientError(
            f"The train function replied with {arrays} ArrayRecords and {metrics} MetricRecords; "
            "FedMA, like FedAvg, needs exactly one of each: reply with "
            'RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord(...)}).'
        )


def _check_trained(
    spec: PermutationSpec,
    instruction: Instruction,
    merged: Mapping[str, Tensor],
    trained: Mapping[str, Tensor],
) -> None:
    for name, tensor in trained.items():
        wanted = merged.get(name, tensor).dtype
        if wanted.is_floating_point and tensor.dtype != wanted:
            raise ClientError(
                f"The tensor {name!r} came back as {tensor.dtype}, the model's is {wanted}: reply "
                "with the model in its own precision, as in "
                "`ArrayRecord(model.float().state_dict())`."
            )
    for name in instruction.settled:
        if name not in trained or not torch.equal(trained[name], merged[name]):
            raise ClientError(
                f"The settled tensor {name!r} was changed by the train function: build the model "
                "with `load_model(Net(), msg)`, which resizes it and freezes what is settled."
            )
    if missing := [name for name in spec.axes if name not in trained]:
        raise ClientError(
            f"The train function's reply lacks the tensors {missing[:5]}: reply with all of the "
            "model's, as in `ArrayRecord(model.state_dict())`."
        )
    if merged:
        spec.check(trained, widths=spec.widths(merged))
    else:
        spec.check(trained)


def _client_key(context: Context) -> str:
    for key in (protocol.CLIENT_KEY, protocol.PARTITION_KEY):
        if key in context.node_config:
            return str(context.node_config[key])
    return str(context.node_id)


def _report(message: Message, report: Report, records: Mapping[str, Any] | None = None) -> Message:
    content = {**(records or {}), protocol.FEDMA_KEY: report.to_record()}
    return Message(RecordDict(content), reply_to=message)


def _refuse(message: Message, reason: str) -> Message:
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)


def _version_mismatch(version: int) -> str:
    return (
        f"The server speaks version {version} of FedMA's stage protocol, this client version "
        f"{protocol.VERSION}: install the same version of fedma-flwr on both."
    )
