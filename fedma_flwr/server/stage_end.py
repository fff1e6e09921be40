"""How a stage ends: it is settled, its round is given up, or the run fails."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from logging import WARNING

from flwr.app import Message
from flwr.serverapp import Grid
from flwr.serverapp.exception import AggregationError
from flwr.supercore import log

from fedma_flwr.server.exchange import Exchange
from fedma_flwr.server.global_model import count_parameters
from fedma_flwr.server.head_counts import warn_of_unnamed_counts
from fedma_flwr.server.history import History, all_failed
from fedma_flwr.server.replies import StageReply
from fedma_flwr.server.reply_metrics import mean_metrics
from fedma_flwr.server.report_details import filters_of, scores_of


def end_stage(
    exchange: Exchange,
    replies: Sequence[Message],
    grid: Grid,
    history: History,
    *,
    min_train_nodes: int,
) -> dict[int, StageReply] | None:
    """Read the replies of a stage, and match and average them.

    Parameters
    ----------
    exchange : Exchange
        The stage's.
    replies : sequence of Message
        To its messages.
    grid : Grid
        Where clients that have lost their state are asked again.
    history : History
        Gets the stage's record.
    min_train_nodes : int
        With fewer clients the round is given up.

    Returns
    -------
    dict of int to StageReply, or None
        By node, in the order of the client keys; None if the round is given up.

    Raises
    ------
    AggregationError
        If nobody's reply can be used in a stage before the first complete round: a mistake that
        the clients share, in whatever form it comes.
    """
    received = exchange.receive(replies, grid)
    if exchange.lacks_targets(received) and exchange.current.may_average_head(exchange.stage):
        return _average_head(exchange, history)
    if len(received) < max(min_train_nodes, 1):
        history.add(exchange.record)
        _give_up(exchange, len(received), history, min_train_nodes)
        return None
    settings = exchange.current.settings
    # Once: at the end of the first round that gets there.
    is_last = exchange.stage == exchange.record.stages - 1
    if settings.several_heads and is_last and not exchange.current.model.token:
        warn_of_unnamed_counts(settings.spec, [reply.metrics for reply in received.values()])
    _settle(exchange, received, details=history.details)
    exchange.record.metrics = dict(
        mean_metrics(
            [reply.metrics for reply in received.values()],
            exchange.current.settings.weighted_by_key,
            log_partial=False,  # it is said of the metrics that the round returns
        )
    )
    history.add(exchange.record)
    return received


def _average_head(exchange: Exchange, history: History) -> dict[int, StageReply]:
    """Go on with the average of the trained heads, and say so once."""
    log(
        WARNING,
        "Round %s: the clients' loss is neither a cross-entropy nor a squared error, so that no "
        "head can be solved. It is the average of the trained heads, as in FedAvg, from now on: "
        "a round has one exchange less. To have it trained in an exchange of its own say "
        'head="trained".',
        exchange.record.round,
    )
    exchange.record.dropped.clear()
    exchange.current.average_head()
    history.add(exchange.record)
    return {}


def _settle(exchange: Exchange, received: Mapping[int, StageReply], *, details: bool) -> None:
    record, current, started = exchange.record, exchange.current, time.monotonic()
    updates = {node: reply.update for node, reply in received.items() if reply.update}
    keys = [member.key for node, member in current.asked(exchange.stage).items() if node in updates]
    head = {**current.model.tensors, **current.settled.local_head}
    outcome = current.settle(exchange.stage, updates)
    record.seconds_matching = time.monotonic() - started
    record.widths = dict(current.settled.widths)
    last = exchange.stage == record.stages - 1
    shared = {name: current.model.tensors[name] for name in current.settings.spec.axes}
    parameters = count_parameters(current.settled.tensors if last else shared)
    record.growth = parameters / current.settings.initial_parameters
    record.describe(outcome, current.settings.spec, current.settings.weighted_by_key)
    if details:
        record.filters = filters_of(current.settings.spec, updates.values(), outcome, keys)
        record.head_scores = scores_of(current.settings.solver, updates.values(), outcome, head)


def _give_up(exchange: Exchange, answered: int, history: History, min_train_nodes: int) -> None:
    record = exchange.record
    name = f"{record.name} stage (stage {record.stage})"
    # A mistake that clients share shows in the first round; later on, failures are weather.
    if answered == 0 and exchange.asks_most and not exchange.current.model.token:
        raise AggregationError(all_failed(record.round, record.name, record.dropped))
    reason = f"{answered} clients remain in the {name}, min_train_nodes is {min_train_nodes}"
    if record.cohort == 0:
        reason = f"no client was asked in the {name}: all were left out"
    history.give_up(record.round, reason)
