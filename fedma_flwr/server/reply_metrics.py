"""The metrics in a client's reply: checked one by one, then against what the others send."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flwr.app import MetricRecord, RecordDict

from fedma_flwr import protocol
from fedma_flwr.server.reply_errors import ReplyError

#: More examples than any client has; sums of as many as there are clients stay exact and finite.
MAX_COUNT = 2**53


def read_metrics(content: RecordDict) -> MetricRecord:
    """The only MetricRecord of a reply.

    Raises
    ------
    ReplyError
        If there is none, or more than one.
    """
    records = list(content.metric_records.values())
    if len(records) != 1:
        raise ReplyError(f"the reply has {len(records)} MetricRecords instead of one")
    return records[0]


def read_weight(metrics: MetricRecord, key: str) -> float:
    """A reply's weight in sample-weighted means.

    Raises
    ------
    ReplyError
        If it is missing, or no number above 0 and up to `MAX_COUNT`.
    """
    if key not in metrics:
        raise ReplyError(
            f"the reply's MetricRecord lacks {key!r} (weighted_by_key): return "
            f'MetricRecord({{"{key}": len(trainset), ...}}) from the train function'
        )
    value: Any = metrics[key]
    if not isinstance(value, (int, float)) or not 0 < value <= MAX_COUNT:
        raise ReplyError(f"{key!r} is {value!r}; it must be a number above 0 and up to 2**53")
    return float(value)


def read_evaluation(content: RecordDict, weighted_by_key: str) -> MetricRecord:
    """The metrics of a reply to an evaluate message.

    Raises
    ------
    ReplyError
        If there is not one MetricRecord, if it lacks its weight, or if a value is not finite.
    """
    metrics = read_metrics(content)
    read_weight(metrics, weighted_by_key)
    if not is_finite(metrics):
        raise ReplyError("its metrics are not finite (NaN or infinity)")
    return metrics


def is_finite(metrics: Mapping[str, Any]) -> bool:
    """Whether there is no NaN and no infinity among the values."""
    values = (
        number
        for value in metrics.values()
        for number in (value if isinstance(value, list) else [value])
    )
    return all(-math.inf < number < math.inf for number in values)


def alike(entries: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Which entries have the names and list lengths that most entries have."""
    kinds = [
        tuple(sorted((k, len(v) if isinstance(v, list) else -1) for k, v in entry.items()))
        for entry in entries
    ]
    if not kinds:
        return []
    usual = max(kinds, key=lambda kind: (kinds.count(kind), kind))
    return [kind == usual for kind in kinds]


def consistent_metrics(metrics: Iterable[MetricRecord]) -> list[RecordDict]:
    """Contents whose metrics have the names and types that most have, without class counts.

    A client that sends other metrics than the rest must not break their aggregation. If any
    client's metrics are finite, only theirs count.
    """
    entries = [
        {k: v for k, v in record.items() if not f"{k}.".startswith(protocol.CLASS_COUNTS_OF)}
        for record in metrics
    ]
    entries = [entry for entry in entries if is_finite(entry)] or entries
    return [
        RecordDict({protocol.METRICS_KEY: MetricRecord(entry)})
        for entry, usual in zip(entries, alike(entries), strict=True)
        if usual
    ]
