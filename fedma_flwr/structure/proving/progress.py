"""Say that a long proof is still under way."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

_LOG = logging.getLogger("flwr")  # where users of Flower look
# Seconds until the first word; each further one comes after twice the time.
_PATIENCE = 3.0


class Progress:
    """Count the passes of a proof, and log them now and then once it takes long.

    Parameters
    ----------
    model : str
        The name of the model's class.
    clock : callable, optional
        Seconds, counted from anywhere.
    """

    def __init__(self, model: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.model, self.clock = model, clock
        self.start, self.next = clock(), _PATIENCE
        self.passes = 0

    def step(self) -> None:
        """Count a pass."""
        self.passes += 1
        seconds = self.clock() - self.start
        if seconds < self.next:
            return
        self.next = 2 * seconds
        text = f"Proving the spec of {self.model}: {self.passes} passes, {seconds:.0f} s so far."
        if _LOG.getEffectiveLevel() <= logging.INFO:
            # A proof keeps the logs of others quiet; this one is meant to be heard.
            record = _LOG.makeRecord(_LOG.name, logging.INFO, __file__, 0, text, (), None)
            _LOG.handle(record)
