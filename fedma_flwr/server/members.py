"""The clients of one round, and what one of them is sent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fedma_flwr.protocol import Assignments, Instruction


@dataclass(frozen=True)
class Changes:
    """What a subclass's `configure_train` has changed in a client's first message.

    Parameters
    ----------
    config : mapping
        Entries of the config that it has added or set anew.
    without : frozenset of str
        Entries of the config that it has removed.
    records : mapping of str to Record
        Records that it has added.
    message_type : str
        As it was left; ``"train.personal"`` calls ``@app.train("personal")``.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    without: frozenset[str] = frozenset()
    records: Mapping[str, Any] = field(default_factory=dict)
    message_type: str = "train"


NO_CHANGES = Changes()


def common_changes(changes: Iterable[Changes]) -> Changes | None:
    """What was changed in all messages alike; None if they differ."""
    given = list(changes) or [NO_CHANGES]
    return given[0] if all(each == given[0] for each in given) else None


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
    changes : Changes
        What a subclass wants changed in its messages.
    placed : bool (default: False)
        Whether units were chosen for it, since it missed the stage that matched its own.
    failures : int (default: 0)
        How often its reply was an error in this round.
    moved : bool (default: False)
        Whether it is to go on with other units than it holds, as a narrow one may.
    """

    node_id: int
    key: str
    widths: dict[str, int]
    assignments: Assignments = field(default_factory=dict)
    guest: bool = False
    changes: Changes = NO_CHANGES
    placed: bool = False
    failures: int = 0
    moved: bool = False


@dataclass(frozen=True)
class Outgoing:
    """What one client is sent in a stage: instruction, config and tensors."""

    instruction: Instruction
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
