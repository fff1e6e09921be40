"""How many threads torch may use: threads wait for one another, and longest on a busy machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from .arrays import Floats

#: Multiplications of a product that keep one thread busy for a twentieth of a second or more.
_WORTH_A_THREAD = 2**31


def threads_for(multiplications: int) -> int:
    """How many threads a product of that size is worth: at most as many as torch may use now.

    Layers of up to about 1,000 units are worth one, whatever torch may use: their results then do
    not depend on it.
    """
    return max(min(multiplications // _WORTH_A_THREAD, torch.get_num_threads()), 1)


def threads_to_match(units: Sequence[Floats]) -> int:
    """The same for the widest client's (L, D) rows with as many sums."""
    width = max(len(rows) for rows in units)
    return threads_for(width * width * units[0].shape[1])


@contextmanager
def using_threads(number: int) -> Iterator[None]:
    """Within this context torch uses so many threads; as many as before after it."""
    before = torch.get_num_threads()
    if number == before:
        yield
        return
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
