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

from fedma_flwr import protocol, reading
from fedma_flwr.client_config_reads import never_read, watch
from fedma_flwr.client_moments import ADVICE, HeadMomentsHook, collecting
from fedma_flwr.client_narrower import NarrowerModels
from fedma_flwr.client_replies import check_reply, checked_model, own_records
from fedma_flwr.client_state import keep, read_kept, receive
from fedma_flwr.client_units import following, note_copies, own_personal
from fedma_flwr.incompatible_mods import mods_around, why_not
from fedma_flwr.protocol import ClientError, Instruction, KeptState, Report
from fedma_flwr.reading import plain
from fedma_flwr.settled_values import LoadedModels, watching
from fedma_flwr.structure import PermutationSpec

_LONGEST_REASON = 1000  # characters; it crosses the network, and a server keeps it


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
    try:
        instruction = protocol.find_instruction(message.content)
    except ValueError as error:
        return _refuse(message, f"The server's instruction cannot be read: {error}")
    if instruction is None:
        return call_next(message, context)
    try:
        return _answer(message, context, instruction, call_next)
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


def _answer(
    message: Message,
    context: Context,
    instruction: Instruction,
    call_next: Callable[[Message, Context], Message],
) -> Message:
    if (obstacle := _obstacle(instruction, call_next)) is not None:
        raise ClientError(obstacle)
    _client_width(context)  # before anything is trained
    if instruction.kind == protocol.HELLO:
        # Others' mods look for FedAvg's records in a reply.
        records = {protocol.ARRAYS_KEY: ArrayRecord(), protocol.METRICS_KEY: MetricRecord()}
        return _report(message, _as_reported(context, protocol.HELLO), records)
    if instruction.kind == protocol.EVALUATE:
        return _evaluate(message, context, instruction, call_next)
    if instruction.kind not in (protocol.UPDATE, protocol.FULL):
        raise ClientError("The server asks for a kind of stage that there is none of.")
    return _run_stage(message, context, instruction, call_next)


def _run_stage(
    message: Message,
    context: Context,
    instruction: Instruction,
    call_next: Callable[[Message, Context], Message],
) -> Message:
    held = receive(message, context, instruction)
    if held is None:
        return _lost(message, context)
    state, merged = held
    watched, parts = watch(message, instruction), _narrower(instruction, state)
    with (
        following(instruction, context),
        collecting(instruction.head_module, instruction.head_expected, parts) as hook,
        watching() as loaded,
    ):
        reply = _train(message, context, call_next, loaded)
    check_reply(reply)
    if reply.has_error():
        return reply
    trained = protocol.to_tensors(next(iter(reply.content.array_records.values())))
    if protocol.GRAM_KEY not in trained:  # what head_moments gave is no model
        trained = checked_model(state, instruction, merged, trained, loaded)
    uploads = _uploads(instruction, trained, hook)
    # The train function may have replaced context.state: write to the one that is there now.
    # Where moments are taken nothing is trained, and the head will be another.
    keep(context, state, merged if instruction.head_module else trained)
    note_copies(context, instruction, trained)
    report = _as_reported(context, protocol.DONE, state.token, never_read(watched))
    return _report(message, report, own_records(reply, uploads))


def _narrower(instruction: Instruction, state: KeptState) -> NarrowerModels:
    """The narrower models whose head inputs the client is asked for."""
    spec = PermutationSpec.from_json(state.spec) if instruction.parts else None
    return NarrowerModels(spec, instruction.parts, instruction.head_module)


def _lost(message: Message, context: Context) -> Message:
    kept, _ = read_kept(context)
    return _report(message, Report(protocol.LOST, holds=kept.token if kept else ""))


def _evaluate(
    message: Message,
    context: Context,
    instruction: Instruction,
    call_next: Callable[[Message, Context], Message],
) -> Message:
    """Let a client evaluate the global model with its own personal tensors, if it has any."""
    kept, tensors = read_kept(context)
    new = protocol.to_tensors(message.content.array_records[instruction.arrays_key])
    own = own_personal(instruction, kept, tensors, new)
    if own:
        message.content[instruction.arrays_key] = protocol.to_arrays({**new, **own})
    message.content[protocol.FEDMA_KEY] = replace(instruction, merged=True).to_record()
    return call_next(message, context)


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


def _uploads(
    instruction: Instruction, trained: Mapping[str, Tensor], hook: HeadMomentsHook
) -> ArrayRecord:
    """What the stage has asked for: tensors, or the moments of the head's inputs."""
    if instruction.head_module:
        return protocol.to_arrays(trained if protocol.GRAM_KEY in trained else hook.moments())
    sent = {name: trained[name] for name in instruction.uploads}
    return protocol.to_arrays(sent, instruction.wire_dtype)


def _client_key(context: Context) -> str:
    for key in (protocol.CLIENT_KEY, protocol.PARTITION_KEY):
        if key in context.node_config:
            return str(context.node_config[key])
    return str(context.node_id)


def _as_reported(
    context: Context, status: str, token: str = "", unread: tuple[str, ...] = ()
) -> Report:
    """What the server is told, with who the client is."""
    return Report(status, token, _client_key(context), unread, _client_width(context))


def _client_width(context: Context) -> float:
    try:
        return reading.ratio(context.node_config, protocol.WIDTH_KEY)
    except ValueError as error:
        raise ClientError(f"The node's config: {error}") from error


def _report(message: Message, report: Report, records: Mapping[str, Any] | None = None) -> Message:
    content = {**(records or {}), protocol.FEDMA_KEY: report.to_record()}
    return Message(RecordDict(content), reply_to=message)


def _refuse(message: Message, reason: str) -> Message:
    code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    return Message(Error(code, plain(reason, _LONGEST_REASON)), reply_to=message)


def _version_mismatch(version: int) -> str:
    return (
        f"The server speaks version {version} of FedMA's stage protocol, this client version "
        f"{protocol.VERSION}: install the same version of fedma-flwr on both."
    )
