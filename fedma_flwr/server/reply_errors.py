"""Why a client's reply is refused."""

from __future__ import annotations


class ReplyError(Exception):
    """A reply cannot be used; the message says why."""
