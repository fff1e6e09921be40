"""What a user's subclass does around `configure_train` and `aggregate_train` is seen here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg

from fedma_flwr.server.pulling import guarded

Aggregated = tuple[ArrayRecord | None, MetricRecord | None]
_WATCHED = "fedma_watched"


class OverridableStrategy(FlowerFedAvg):
    """A strategy that sees what the outermost override of its two methods is given and returns.

    Whoever calls them need not be our `start`: Flower's own, a wrapper's or a subclass's will do.
    """

    _within = False  # whether one of the two methods is running

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Watch the methods of every subclass, those that it has from elsewhere included."""
        super().__init_subclass__(**kwargs)
        for name, watch in (
            ("configure_train", _watch_configuring),
            ("aggregate_train", _watch_aggregating),
        ):
            method = getattr(cls, name)
            if not hasattr(method, _WATCHED):
                watched = watch(method)
                setattr(watched, _WATCHED, True)
                setattr(cls, name, watched)

    def _enter_round(self, server_round: int, arrays: ArrayRecord) -> None:
        """Begin a run that did not begin with our `start`."""

    def _sending(self, server_round: int, messages: list[Message]) -> list[Message]:
        """Take note of the messages that are going to be sent."""
        return messages

    def _receiving(self, server_round: int, replies: list[Message]) -> None:
        """Take note of the replies that have come."""

    def _aggregated(self, server_round: int, outcome: Aggregated) -> Aggregated:
        """Finish a round that an override has not handed on to our `aggregate_train`."""
        return outcome

    def _has_own(self, name: str) -> bool:
        """Whether a method is a subclass's, or was put in its place."""
        definer = next(cls for cls in type(self).__mro__ if name in vars(cls))
        return name in vars(self) or not definer.__module__.startswith("fedma_flwr.")

    def _overridden(self, name: str) -> str:
        """A method as errors name it: the subclass's if there is one."""
        return f"{type(self).__name__}.{name}"


def _watch_configuring(method: Callable[..., Any]) -> Callable[..., list[Message]]:
    @wraps(method)
    def configure_train(
        self: OverridableStrategy,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        grid: Grid,
    ) -> list[Message]:
        if self._within:  # an override has called its parent's
            return list(method(self, server_round, arrays, config, grid) or [])
        self._enter_round(server_round, arrays)
        self._within = True
        try:
            messages = method(self, server_round, arrays, config, guarded(grid))
            # A generator is still within the override while it is read.
            messages = list(messages or [])
        finally:
            self._within = False
        return self._sending(server_round, messages)

    return configure_train


def _watch_aggregating(method: Callable[..., Any]) -> Callable[..., Aggregated]:
    @wraps(method)
    def aggregate_train(
        self: OverridableStrategy, server_round: int, replies: Iterable[Message]
    ) -> Aggregated:
        if self._within:
            return _pair(method(self, server_round, replies))
        replies = list(replies)
        self._receiving(server_round, replies)
        self._within = True
        try:
            outcome = _pair(method(self, server_round, replies))
        finally:
            self._within = False
        return self._aggregated(server_round, outcome)

    return aggregate_train


def _pair(outcome: Any) -> Aggregated:
    """What an override returns; None, as one that skips a round may, is nothing at all."""
    return (None, None) if outcome is None else outcome
