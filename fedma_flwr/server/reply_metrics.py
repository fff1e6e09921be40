"""The metrics in a client's reply: checked one by one, then against what the others send."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from logging import INFO, WARNING
from typing import Any

from flwr.app import MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords
from flwr.supercore import log

from fedma_flwr import protocol, reading
from fedma_flwr.server.reply_errors import ReplyError

#: More examples than any client has; sums of as many as there are clients stay exact and finite.
MAX_COUNT = 2**53
#: A reply's metrics are kept until the end of the round, for all clients.
MOST_METRIC_BYTES = 2**20
#: What is beyond is no measurement; weighted sums of as many as there are clients stay finite.
_LARGEST = 1e308
# Of metrics that most clients do not send: the history and every checkpoint have their means.
_MOST_OTHERS, _LONGEST_OTHER, _LONGEST_NAME = 100, 1000, 200


def read_metrics(content: RecordDict) -> MetricRecord:
    """The only MetricRecord of a reply.

    Raises
    ------
    ReplyError
        If there is none, or more than one, or if it is too large.
    """
    records = list(content.metric_records.values())
    if len(records) != 1:
        raise ReplyError(
            f"the reply has {len(records)} MetricRecords instead of one: return "
            'RecordDict({"arrays": ..., "metrics": MetricRecord({...})}) from the train function'
        )
    size = protocol.count_bytes([RecordDict({protocol.METRICS_KEY: records[0]})])
    if size > MOST_METRIC_BYTES:
        raise ReplyError(
            f"the reply's MetricRecord has {size} bytes; at most {MOST_METRIC_BYTES} are taken"
        )
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
        raise ReplyError(
            f"{key!r} is {value!r}; it must be a number above 0 and up to 2**53: "
            f'return MetricRecord({{"{key}": len(trainset), ...}}) from the train function'
        )
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
    """Whether there is no NaN, no infinity and nothing near it among the values."""
    values = (
        number
        for value in metrics.values()
        for number in (value if isinstance(value, list) else [value])
    )
    return all(-_LARGEST <= number <= _LARGEST for number in values)


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


#: FedAvg's ``train_metrics_aggr_fn``.
Aggregation = Callable[[list[RecordDict], str], MetricRecord]


def aggregate(
    contents: Sequence[RecordDict], weighted_by_key: str, function: Aggregation
) -> MetricRecord | None:
    """What FedAvg's ``train_metrics_aggr_fn`` makes of the clients' records.

    Without one of the user's each metric is the weighted mean over the clients that send it. A
    function of the user's gets all clients that sent finite numbers; where it fails and metrics
    differ, those that sent what most did.

    Parameters
    ----------
    contents : sequence of RecordDict
        By client; each has one MetricRecord, with its weight.
    weighted_by_key : str
        Metric with the client's weight.
    function : callable
        Flower's, or the user's.
    """
    if not contents:
        return None
    if function is aggregate_metricrecords:
        return mean_metrics([_metrics(content) for content in contents], weighted_by_key)
    finite = [content for content in contents if is_finite(_metrics(content))] or list(contents)
    try:
        return function(finite, weighted_by_key)
    except Exception as error:  # of a client that sends other metrics than most, or the user's own
        usual = alike([_metrics(content) for content in finite])
        if all(usual):
            raise
        log(
            WARNING,
            "train_metrics_aggr_fn failed (%s: %s): asking it again without %s clients whose "
            "metrics are not those of most.",
            type(error).__name__,
            reading.plain(str(error)),
            usual.count(False),
        )
    return function([c for c, kept in zip(finite, usual, strict=True) if kept], weighted_by_key)


def mean_metrics(
    entries: Sequence[Mapping[str, Any]], weighted_by_key: str, *, log_partial: bool = True
) -> MetricRecord:
    """Weighted mean of each metric over the clients that send it, without weights, class counts.

    Numbers count where most clients send a number, lists where most send one of that length.
    """
    means = MetricRecord()
    for name in _kept_names(entries):
        if name in {weighted_by_key, protocol.CLASS_COUNTS_KEY}:
            continue
        senders = [entry for entry in entries if name in entry]
        finite = [entry for entry in senders if is_finite({name: entry[name]})] or senders
        usual = alike([{name: entry[name]} for entry in finite])
        kept = [entry for entry, like in zip(finite, usual, strict=True) if like]
        if len(kept) < len(entries) and log_partial:
            log(INFO, "\tMetric %r: mean of %s of %s clients", name, len(kept), len(entries))
        means[name] = _mean([e[name] for e in kept], [e[weighted_by_key] for e in kept])
    return means


def _kept_names(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of metrics, in order and each once; of those that few clients send only some."""
    kept: list[str] = []
    others = 0
    for name in {name: None for entry in entries for name in entry}:
        if reading.plain(name, _LONGEST_NAME) != name:
            continue
        values = [entry[name] for entry in entries if name in entry]
        if 2 * len(values) <= len(entries):
            longest = max(len(value) if isinstance(value, list) else 1 for value in values)
            others += 1
            if others > _MOST_OTHERS or longest > _LONGEST_OTHER:
                continue
        kept.append(name)
    return kept


def _metrics(content: RecordDict) -> MetricRecord:
    return next(iter(content.metric_records.values()))


def _mean(values: Sequence[Any], weights: Sequence[float]) -> Any:
    """Summed as Flower does, so that a baseline's numbers are Flower's."""
    shares = [weight / sum(weights) for weight in weights]
    if isinstance(values[0], list):
        columns = zip(*values, strict=True)
        return [sum(v * s for v, s in zip(column, shares, strict=True)) for column in columns]
    return sum(value * share for value, share in zip(values, shares, strict=True))
