"""Replies that carry a whole model, as FedAvg's do: which of them can be averaged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from flwr.app import ArrayRecord, Message

from fedma_flwr import wire
from fedma_flwr.server.messages import count_reply, error_reason
from fedma_flwr.server.reply_errors import ReplyError, refusing
from fedma_flwr.server.reply_metrics import MOST_METRIC_BYTES, read_metrics, read_weight

#: Bytes of a reply beside its arrays' numbers; integers may come wider than they went.
_MOST_BESIDE = 2**20 + MOST_METRIC_BYTES


def usable_models(
    replies: Iterable[Message],
    initial: Callable[[Message], ArrayRecord],
    weighted_by_key: str,
    leave_out: Callable[[Message, str], None],
) -> list[Message]:
    """Replies whose models can be averaged, in their order.

    Parameters
    ----------
    replies : iterable of Message
        What the clients sent.
    initial : callable
        The initial arrays at the width of a reply's client: names, shapes and dtypes that it must
        have.
    weighted_by_key : str
        Metric that every reply must have.
    leave_out : callable
        Called with each reply that cannot be used, and the reason.
    """
    usable = []
    for reply in replies:
        try:
            with refusing():
                _check(reply, initial(reply), weighted_by_key)
        except ReplyError as error:
            leave_out(reply, str(error))
        else:
            usable.append(reply)
    return usable


def _check(reply: Message, initial: ArrayRecord, weighted_by_key: str) -> None:
    if reply.has_error():
        raise ReplyError(error_reason(reply))
    count_reply(reply, _most_bytes(initial))
    read_weight(read_metrics(reply.content), weighted_by_key)
    records = list(reply.content.array_records.values())
    if len(records) != 1:
        raise ReplyError(
            f"the reply has {len(records)} ArrayRecords instead of one: return "
            'RecordDict({"arrays": ArrayRecord(model.state_dict()), ...}) from the train function'
        )
    if missing := [name for name in initial if name not in records[0]]:
        more = f" and {len(missing) - 5} others" if len(missing) > 5 else ""
        raise ReplyError(
            f"the reply lacks the tensors {missing[:5]}{more}: send all of the model's, as in "
            "`ArrayRecord(model.state_dict())`"
        )
    if extra := [name for name in records[0] if name not in initial]:
        raise ReplyError(f"the reply has tensors that nobody asked for: {extra[:5]}")
    _check_arrays(records[0], _forms(initial))


def _most_bytes(initial: ArrayRecord) -> int:
    """Of the largest reply that makes sense: in double precision it is refused by name."""
    return _MOST_BESIDE + sum(8192 + 8 * len(array.data) for array in initial.values())


def _forms(initial: ArrayRecord) -> Mapping[str, tuple[tuple[int, ...], str]]:
    return {name: (tuple(array.shape), array.dtype) for name, array in initial.items()}


def _check_arrays(arrays: ArrayRecord, forms: Mapping[str, tuple[tuple[int, ...], str]]) -> None:
    for name, (shape, dtype) in forms.items():
        try:
            wire.check_extent(arrays[name])
            values = arrays[name].numpy()
        except Exception as error:  # whatever hostile bytes provoke in the decoder
            raise ReplyError(f"tensor {name!r} cannot be decoded: {error}") from error
        if values.shape != shape or (dtype.startswith("float") and str(values.dtype) != dtype):
            raise ReplyError(
                f"tensor {name!r} comes as {values.dtype} of shape {values.shape}; {dtype} of "
                f"shape {shape} was expected: send the model as wide and precise as it came, as in "
                "`ArrayRecord(model.float().state_dict())`"
            )
        if values.dtype.kind not in "biuf":
            raise ReplyError(f"tensor {name!r} comes as {values.dtype}: no real numbers")
        if not np.isfinite(values).all():
            raise ReplyError(f"tensor {name!r} is not finite (NaN or infinity)")
