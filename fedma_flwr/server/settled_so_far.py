"""What a round has settled so far, stage by stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from fedma_flwr import wire
from fedma_flwr.averaging import ClientUpdate, StageOutcome
from fedma_flwr.averaging.outcome import NarrowHead
from fedma_flwr.server.group_matching import GroupMatching


@dataclass
class SettledSoFar:
    """What a round has settled so far.

    Parameters
    ----------
    tensors : dict of str to Tensor
        The settled tensors at the global widths, as the clients have them.
    widths : dict of str to int
        Global width of every group matched so far.
    matchings : dict of str to GroupMatching
        How each of these groups was matched.
    local_head : dict of str to Tensor
        The head that local training goes on from; see `StageOutcome`.
    trained_head : dict of str to Tensor
        The average of the trained heads beside a solved one.
    moments : mapping of str to ClientUpdate
        What clients sent in the head stage that solved the head, by client key.
    share_factor : float
        See `SolvedHead`; 1 as long as nothing was solved.
    unexplained : float
        The same; 1 as long as nothing was solved.
    references : dict of int to dict of str to Tensor
        By stage, the head that its step starts from, as clients get it.
    head_averaged : bool
        Whether the head is the average of trained ones, since it could not be solved.
    narrow_heads : tuple of NarrowHead
        Of the narrow models that clients hold.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)
    matchings: dict[str, GroupMatching] = field(default_factory=dict)
    local_head: dict[str, Tensor] = field(default_factory=dict)
    trained_head: dict[str, Tensor] = field(default_factory=dict)
    moments: Mapping[str, ClientUpdate] = field(default_factory=dict)
    share_factor: float = 1.0
    unexplained: float = 1.0
    references: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    head_averaged: bool = False
    narrow_heads: tuple[NarrowHead, ...] = ()

    def average_head(self, names: Iterable[str]) -> None:
        """Let the average of the trained heads stay."""
        self.tensors.update({name: self.local_head[name] for name in names})
        self.head_averaged = True

    def add(self, outcome: StageOutcome, clients: Sequence[str], wire_dtype: str) -> None:
        """Take over what a stage has given.

        Parameters
        ----------
        outcome : StageOutcome
            The stage's.
        clients : sequence of str
            Keys of the clients whose units were matched in it, in their order.
        wire_dtype : str
            Precision in which weights cross. Server and clients must hold the same numbers, or a
            resumed run would differ.
        """
        self.tensors.update(wire.rounded(outcome.tensors, wire_dtype))
        self.widths.update(outcome.widths)
        if outcome.head_solved:
            self.trained_head = dict(self.local_head)
        self.local_head.update(wire.rounded(outcome.local_head, wire_dtype))
        self.narrow_heads += tuple(
            replace(
                head,
                tensors=wire.rounded(head.tensors, wire_dtype),
                local_head=wire.rounded(head.local_head, wire_dtype),
            )
            for head in outcome.narrow_heads
        )
        if outcome.share_factor is not None:
            self.share_factor = outcome.share_factor
        if outcome.unexplained is not None:
            self.unexplained = outcome.unexplained
        for group, matching in outcome.matchings.items():
            last = outcome.last_units.get(group)
            before = None if last is None else last.numpy()
            self.matchings[group] = GroupMatching.of(clients, matching, before)
