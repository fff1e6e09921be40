"""What a round costs beside one of FedAvg, in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fedma_flwr import protocol
from fedma_flwr.structure import StagePlan


def cost_in_words(
    plan: StagePlan,
    config_overrides: Mapping[str, Mapping[str, Any]],
    trains_nothing: Callable[[int], bool],
) -> str:
    """Exchanges of a round, and epochs of each client, as far as the server can know them.

    Epochs are counted in those of the local stage. A stage that ``retrain_config`` or
    ``head_config`` gives ``local-epochs`` counts so many in place of them; that is true of train
    functions that read this key from the message's config.

    Parameters
    ----------
    plan : StagePlan
        The stages of a round.
    config_overrides : mapping of str to mapping
        Entries of the train config that a stage sets anew, by its name.
    trains_nothing : callable
        Whether clients train nothing in the stage of a number.
    """
    whole, more, passes = 0, 0.0, 0
    for planned in plan.stages:
        overrides = config_overrides.get(planned.name, {})
        epochs = overrides.get(protocol.EPOCHS_CONFIG_KEY)
        if trains_nothing(planned.index):
            passes += 1
        elif isinstance(epochs, int | float):
            more += epochs
        else:
            whole += 1
    number = len(plan)
    parts = [f"{_count(number, 'exchange')} (FedAvg: 1)"]
    times = "those of a FedAvg round" if whole == 1 else f"{whole} times those of a FedAvg round"
    parts.append(f"epochs of a client: {times}" + (f" and {more:g} more" if more else ""))
    if passes:
        parts.append(f"and {_count(passes, 'pass', 'passes')} without training")
    return ", ".join(parts)


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
