"""`fedma_mod`: the Flower mod that lets an ordinary train function take part in FedMA's stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from logging import ERROR
from typing import Any

from flwr.app import ArrayRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore import log
from torch import Tensor

from fedma_flwr import protocol
from fedma_flwr.client_moments import HeadMomentsHook, collecting
from fedma_flwr.protocol import ClientError, Instruction, KeptState, Report
from fedma_flwr.settled_values import LoadedModels, put_back, watching
from fedma_flwr.structure import PermutationSpec
from fedma_flwr.structure.wrapped_models import under_names


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
    if instruction.version != protocol.VERSION:
        return _refuse(message, _version_mismatch(instruction.version))
    if instruction.kind == protocol.HELLO:
        return _report(message, Report(protocol.HELLO, client_key=_client_key(context)))
    try:
        return _run_stage(message, context, instruction, call_next)
    except ClientError as error:
        return _refuse(message, str(error))
    except Exception as error:  # whatever the user's code raises must reach the server in words
        log(ERROR, "FedMA stage failed", exc_info=True)
        return _refuse(message, f"{type(error).__name__}: {error}")


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
    if merged:
        message.content[instruction.arrays_key] = protocol.to_arrays(merged)
    message.content[protocol.FEDMA_KEY] = replace(instruction, merged=True).to_record()

    with collecting(instruction.head_module) as hook, watching() as loaded:
        reply = _train(message, context, call_next, loaded)
    if reply.has_error():
        return reply
    trained, metrics = _read_reply(reply)
    if protocol.GRAM_KEY not in trained:  # what head_moments gave is no model
        trained = _checked(state, instruction, merged, trained, loaded)
    uploads = _uploads(instruction, trained, hook)
    # The train function may have replaced context.state: write to the one that is there now.
    # Where moments are taken nothing is trained, and the head will be another.
    _keep(context, state, merged if instruction.head_module else trained)
    records = {protocol.ARRAYS_KEY: uploads, protocol.METRICS_KEY: metrics}
    return _report(message, Report(protocol.DONE, holds=state.token), records)


def _train(
    message: Message,
    context: Context,
    call_next: Callable[[Message, Context], Message],
    loaded: LoadedModels,
) -> Message:
    try:
        return call_next(message, context)
    except Exception as error:
        if isinstance(error, ClientError) or not loaded.nothing_left_to_train:
            raise
        raise ClientError(
            f"{type(error).__name__}: {error} -- Nothing is left to train in this stage: the train "
            "function froze layers after `load_model`. Freeze them before it, in the model that "
            "it is given; then it sees to such stages."
        ) from error


def _checked(
    state: KeptState,
    instruction: Instruction,
    merged: Mapping[str, Tensor],
    trained: Mapping[str, Tensor],
    loaded: LoadedModels,
) -> dict[str, Tensor]:
    """What was trained, under the spec's names, with what is settled as it was."""
    spec = PermutationSpec.from_json(state.spec)
    trained = under_names(trained, spec.axes)  # without the names of wrappers
    trained = put_back(spec, instruction.settled, merged, trained, loaded)
    spec.check(trained, widths=spec.widths(merged) if merged else None)
    return trained


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


def _read_reply(reply: Message) -> tuple[dict[str, Tensor], MetricRecord]:
    """The only ArrayRecord and the only MetricRecord of a train function's reply."""
    arrays = list(reply.content.array_records.values())
    metrics = list(reply.content.metric_records.values())
    if len(arrays) != 1 or len(metrics) != 1:
        raise ClientError(
            f"The train function replied with {len(arrays)} ArrayRecords and {len(metrics)} "
            "MetricRecords; FedMA, like FedAvg, needs exactly one of each."
        )
    return protocol.to_tensors(arrays[0]), metrics[0]


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
