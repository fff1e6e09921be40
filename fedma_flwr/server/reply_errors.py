"""Why a client's reply is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fedma_flwr import reading


class ReplyError(Exception):
    """A reply cannot be used; the message says why."""


@contextmanager
def refusing() -> Iterator[None]:
    """Whatever a reply provokes while it is read is a `ReplyError`: no reply ends a run.

    Raises
    ------
    ReplyError
        If anything at all is raised within.
    """
    try:
        yield
    except ReplyError:
        raise
    except Exception as error:
        words = reading.plain(f"{type(error).__name__}: {error}")
        raise ReplyError(f"the reply cannot be read: {words}") from error
