"""A train function that never looks at what ``retrain_config`` or ``head_config`` says."""

from __future__ import annotations

from collections.abc import Mapping
from logging import WARNING
from typing import Any

from flwr.app import Message
from flwr.supercore import log

from fedma_flwr import protocol
from fedma_flwr.structure.stages import HEAD


class IgnoredConfig:
    """What all clients that answered a stage have passed over.

    Parameters
    ----------
    stage : str
        The stage's name.
    overrides : mapping
        The entries that the strategy has set for it.
    """

    def __init__(self, stage: str, overrides: Mapping[str, Any]) -> None:
        self._stage = stage
        self._unread = set(overrides)
        self._replies = 0

    def note(self, reply: Message) -> None:
        """Take note of a valid reply."""
        report = protocol.find_report(reply.content)
        self._unread &= set(report.unread) if report is not None else set()
        self._replies += 1

    def warn(self) -> None:
        """Say it in the log, if no client has looked at an entry."""
        if not self._replies or not self._unread:
            return
        names = ", ".join(repr(name) for name in sorted(self._unread))
        log(
            WARNING,
            "The train function never looks at %s of the message's config: %s has no effect on the "
            '%s stage. Read them as in msg.content["config"]["local-epochs"], not from '
            "context.run_config.",
            names,
            "head_config" if self._stage == HEAD else "retrain_config",
            self._stage,
        )
