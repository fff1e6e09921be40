"""Random numbers: drawn anew in every pass, their distribution has no order.

Numbers that a generator of the code's own draws are constants, and pinned.
"""

from __future__ import annotations

from fedma_flwr.structure.deriving.atoms import Axes, free
from fedma_flwr.structure.deriving.rules.call import Call, broadcast, fixed_like, rule


def _is_seeded(call: Call) -> bool:
    return call.arguments.get("generator") is not None


@rule("rand randn rand_like randn_like normal")
def drawn(call: Call) -> Axes:
    """All positions alike; beside a mean or deviation of their own they follow these."""
    if _is_seeded(call):
        call.pin_all("it meets numbers of a generator of the code's own")
        return fixed_like(call.shape)
    if call.name == "normal" and call.tensors:
        return broadcast(*call.all_axes())
    return tuple(free(length) for length in call.shape)


@rule("normal_ uniform_ exponential_ log_normal_ cauchy_ geometric_ random_")
def drawn_in_place(call: Call) -> Axes:
    """The first argument's values change, its axes do not."""
    if _is_seeded(call):
        call.pin_all("it meets numbers of a generator of the code's own")
    return call.axes("self")
