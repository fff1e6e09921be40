"""While a run goes on: one line an exchange, and one now and then while clients are waited for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from logging import INFO
from typing import Protocol

from flwr.supercore import log

from fedma_flwr import protocol

_MEGABYTE = 1e6
_QUIET_SECONDS = 30.0  # between two lines while clients are waited for


class Ended(Protocol):
    """What is told of an exchange: an `ExchangeRecord`'s."""

    name: str
    round: int
    stage: int
    stages: int
    cohort: int
    answered: int
    bytes_up: int
    bytes_down: int


@dataclass
class Progress:
    """Says in the log how far a run is.

    Parameters
    ----------
    rounds : int (default: 0)
        Rounds of the run; 0: not known, and no time left can be told.
    """

    rounds: int = 0

    def __post_init__(self) -> None:
        self._started = time.monotonic()
        self._ended = 0  # exchanges since then
        self._bytes = 0

    def add(self, record: Ended) -> None:
        """Say that an exchange has ended; a hello only counts."""
        self._bytes += record.bytes_up + record.bytes_down
        if record.name == protocol.HELLO:
            return
        self._ended += 1
        of = f"/{self.rounds}" if self.rounds else ""
        log(
            INFO,
            "Round %s%s, stage %s/%s (%s): %s of %s clients answered, %.1f MB so far%s",
            record.round,
            of,
            record.stage + 1,
            record.stages,
            record.name,
            record.answered,
            record.cohort,
            self._bytes / _MEGABYTE,
            self._time_left(record),
        )

    def _time_left(self, record: Ended) -> str:
        """As long as the exchanges of this run have taken on average, for those that are left."""
        left = (self.rounds - record.round) * record.stages + record.stages - record.stage - 1
        if not self.rounds or left <= 0:
            return ""
        return f", about {in_words((time.monotonic() - self._started) / self._ended * left)} left"


@dataclass
class WaitingNote:
    """Says now and then how many have answered, while others are waited for."""

    asked: int

    def __post_init__(self) -> None:
        self._told = time.monotonic()
        self._answered = 0

    def see(self, received: Sequence[object]) -> None:
        """Say how many answers there are, if it is time and there are more than before."""
        now = time.monotonic()
        if len(received) == self._answered or now - self._told < _QUIET_SECONDS:
            return
        self._told, self._answered = now, len(received)
        log(INFO, "\t%s of %s clients have answered", len(received), self.asked)


def in_words(seconds: float) -> str:
    """A length of time: "40 s", "3 min", "2 h 5 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
