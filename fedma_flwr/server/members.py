"""The clients of one round, and what one of them is sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fedma_flwr.protocol import Assignments, Instruction


@dataclass
class Member:
    """A client of the round's cohort.

    Parameters
    ----------
    node_id : int
        Its Flower node.
    key : str
        Its client key.
    widths : dict of str to int
        Its own width of each group, as far as known.
    assignments : dict of str to Tensor
        Its global units of the groups matched so far in this round.
    guest : bool (default: False)
        Whether it is no client of the cohort, and is only asked for moments.
    """

    node_id: int
    key: str
    widths: dict[str, int]
    assignments: Assignments = field(default_factory=dict)
    guest: bool = False


@dataclass(frozen=True)
class Outgoing:
    """What one client is sent in a stage: instruction, config and tensors."""

    instruction: Instruction
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
