"""What a train function has replied, before it goes to the server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flwr.app import ArrayRecord, Message
from torch import Tensor

from fedma_flwr import protocol
from fedma_flwr.protocol import ClientError, Instruction, KeptState
from fedma_flwr.settled_values import LoadedModels, put_back
from fedma_flwr.structure import PermutationSpec
from fedma_flwr.structure.name_patterns import patterns_for
from fedma_flwr.structure.wrapped_models import under_names


def check_reply(reply: Any) -> None:
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


def checked_model(
    state: KeptState,
    instruction: Instruction,
    merged: Mapping[str, Tensor],
    trained: Mapping[str, Tensor],
    loaded: LoadedModels,
) -> dict[str, Tensor]:
    """What was trained, under the spec's names, with what is settled as it was."""
    spec = PermutationSpec.from_json(state.spec)
    trained = under_names(trained, spec.axes)  # without the names of wrappers
    if instruction.partial:  # all else never leaves the client
        trained = {name: tensor for name, tensor in trained.items() if name in spec.axes}
    # Who replies with what requires a gradient leaves out what `load_model` has frozen.
    settled = {name: merged[name] for name in instruction.settled if name in merged}
    trained = {**settled, **trained}
    if missing := [name for name in spec.axes if name not in trained]:
        more = f" and {len(missing) - 5} others" if len(missing) > 5 else ""
        raise ClientError(
            f"The train function's reply lacks the tensors {missing[:5]}{more}: reply with all of "
            "the model's, as in `ArrayRecord(model.state_dict())`. If they are to stay with the "
            f"client, give the strategy personal={patterns_for(missing, spec.axes)!r}, or leave "
            "them out of initial_arrays."
        )
    _check_precision(merged, trained)
    trained = put_back(spec, instruction.settled, merged, trained, loaded)
    spec.check(trained, widths=spec.widths(merged) if merged else None)
    return trained


def _check_precision(merged: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> None:
    for name, tensor in trained.items():
        wanted = merged.get(name, tensor).dtype
        if wanted.is_floating_point and tensor.dtype != wanted:
            raise ClientError(
                f"The tensor {name!r} came back as {tensor.dtype}, the model's is {wanted}: reply "
                "with the model in its own precision, as in "
                "`ArrayRecord(model.float().state_dict())`."
            )


def own_records(reply: Message, uploads: ArrayRecord) -> dict[str, Any]:
    """What a reply sends: its records under the names that they have, for mods before this one."""
    content = reply.content
    return {
        name: uploads if name in content.array_records else record
        for name, record in content.items()
        if name != protocol.FEDMA_KEY
    }
