"""What of Flower's, or a subclass's, cannot work with FedMA: refused by name, with the reason."""

from __future__ import annotations

import sys
from types import FrameType
from typing import NoReturn

from flwr.serverapp.strategy import Strategy

_PRIVATE = "DifferentialPrivacy"  # how the names of Flower's wrappers begin


def refuse_wrappers(strategy: Strategy) -> None:
    """Refuse a run that one of Flower's differential privacy wrappers runs.

    A strategy is not told who wraps it, so that the calls which have led here are looked at.

    Raises
    ------
    ValueError
        Names the wrapper, why it cannot work, and what to do.
    """
    frame: FrameType | None = sys._getframe(1)  # no public way shows who has called
    while frame is not None:
        owner = frame.f_locals.get("self")
        kinds = [kind.__name__ for kind in type(owner).__mro__]
        wraps = isinstance(owner, Strategy) and owner is not strategy
        if wraps and any(name.startswith(_PRIVATE) for name in kinds):
            raise ValueError(
                f"{kinds[0]} cannot wrap {type(strategy).__name__}: it clips the arrays of one "
                "reply a round and adds noise to their average, but FedMA's clients send parts of "
                "a model in several stages, and moments of the head's inputs that it does not "
                "cover. Wrap FedAvg, or use FedMA without it."
            )
        frame = frame.f_back


def refuse_own_messages(who: str) -> NoReturn:
    """Refuse messages that FedMA has not made.

    Raises
    ------
    ValueError
        Names the method and the remedy.
    """
    raise ValueError(
        f"{who} returned messages of its own. A stage of FedMA needs what FedMA puts into its "
        "messages: call `super().configure_train(...)`, and change or leave out what it returns."
    )


def refuse_own_aggregation(who: str) -> NoReturn:
    """Refuse arrays that come of the first stage's replies alone.

    Raises
    ------
    ValueError
        Names the method and the remedy.
    """
    raise ValueError(
        f"{who} returned arrays without calling `super().aggregate_train(...)`, which matches, "
        "averages and runs the later stages: call it, and change what it returns."
    )
