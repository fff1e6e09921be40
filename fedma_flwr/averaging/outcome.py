"""What a stage's arithmetic gives."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedma_flwr.matching import Matching


@dataclass(frozen=True)
class NarrowHead:
    """The head of a narrow model.

    Parameters
    ----------
    units : dict of str to Tensor
        (n,) global units of the model, by group.
    tensors : dict of str to Tensor
        The head, at the model's widths.
    local_head : dict of str to Tensor
        The one that local training goes on from; empty: the whole model's.
    """

    units: dict[str, Tensor]
    tensors: dict[str, Tensor]
    local_head: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class StageOutcome:
    """What the server knows after a stage.

    Parameters
    ----------
    tensors : dict of str to Tensor
        The settled tensors at the global widths.
    assignments : tuple of dict of str to Tensor
        For each client the (n,) global unit of each of its units, by group.
    widths : dict of str to int
        Global width of the groups matched in this stage.
    matchings : dict of str to Matching
        The matcher's results by group.
    head_by_class : bool
        Whether the head was averaged by class counts (False also when there is no head here).
    head_solved : bool
        Whether it was solved from moments.
    local_head : dict of str to Tensor
        The head that local training goes on from, where that is not the one that settles: the
        average of trained heads, or the solved one on a smaller scale.
    share_factor : float or None
        See `SolvedHead`.
    unexplained : float or None
        The same; None if no head was solved.
    similarity : dict of str to list of float
        How alike matched units are, by group; see `similarity_of_matched`.
    last_units : dict of str to Tensor
        Where the units of the last global model are, if it took part in the matching.
    narrow_heads : tuple of NarrowHead
        Solved heads of the narrow models that clients hold.
    """

    tensors: dict[str, Tensor]
    assignments: tuple[dict[str, Tensor], ...]
    widths: dict[str, int] = field(default_factory=dict)
    matchings: dict[str, Matching] = field(default_factory=dict)
    head_by_class: bool = False
    head_solved: bool = False
    local_head: dict[str, Tensor] = field(default_factory=dict)
    share_factor: float | None = None
    unexplained: float | None = None
    similarity: dict[str, list[float]] = field(default_factory=dict)
    last_units: dict[str, Tensor] = field(default_factory=dict)
    narrow_heads: tuple[NarrowHead, ...] = ()

    @property
    def identity_shares(self) -> dict[str, float]:
        """Share of clients whose unit ``i`` is global unit ``i``, by group."""
        return {
            group: sum(is_identity(own[group]) for own in self.assignments) / len(self.assignments)
            for group in self.matchings
        }

    @property
    def identity_share(self) -> float | None:
        """Share of clients for which that holds in all groups; None if nothing was matched."""
        if not self.matchings:
            return None
        alike = [all(map(is_identity, own.values())) for own in self.assignments]
        return sum(alike) / len(alike)


def is_identity(units: Tensor) -> bool:
    """Whether an assignment sends unit ``i`` to global unit ``i``."""
    return torch.equal(units, torch.arange(len(units)))
