"""What `train_metrics_aggr_fn` is given after a round: a client's records, of all stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedma_flwr.server.replies import Told
from fedma_flwr.server.settings import RoundSettings


def train_contents(told: Sequence[Mapping[int, Told]], settings: RoundSettings) -> list[RecordDict]:
    """Each client's records, as FedAvg's ``train_metrics_aggr_fn`` would be given them.

    The MetricRecord is that of the last stage in which the clients trained. The ArrayRecord has
    the names of all tensors, and no values. ConfigRecords ``stage-0``, ``stage-1``, ... have the
    metrics that the client sent in each stage.

    Parameters
    ----------
    told : sequence of mapping of int to Told
        By stage and node, in the order of the client keys.
    settings : RoundSettings
        The run's.
    """
    last = last_trained(settings)
    names = ArrayRecord({name: Array(np.empty(0, np.float32)) for name in settings.spec.axes})
    return [_content(node, last, told, names) for node in told[last]]


def last_trained(settings: RoundSettings) -> int:
    """The last stage of a round in which clients train: losses of later ones say nothing.

    The first one, if they train in none: all but a head may be frozen, and that is solved.
    """
    plan = settings.plan
    trained = [
        stage
        for stage in range(len(plan))
        if not settings.trains_nothing(stage) and not plan[stage].solves_head
    ]
    return trained[-1] if trained else 0


def _content(
    node: int, last: int, told: Sequence[Mapping[int, Told]], names: ArrayRecord
) -> RecordDict:
    reply = told[last][node]
    arrays_key, metrics_key = reply.names
    stages = {
        f"stage-{stage}": ConfigRecord(dict(replies[node].metrics))
        for stage, replies in enumerate(told)
        if node in replies
    }
    return RecordDict({**stages, **reply.records, arrays_key: names, metrics_key: reply.metrics})
