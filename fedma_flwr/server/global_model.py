"""The global model, and which of its units make up each client's local model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedma_flwr.averaging.head import FIRST_SHARE, LEAST_SHARE, MOST_SHARE
from fedma_flwr.averaging.outcome import NarrowHead
from fedma_flwr.protocol import Assignments
from fedma_flwr.server.remembered import RememberedMoments
from fedma_flwr.structure.narrowing import same_units

#: Of the classes' variance: in runs that go well the unexplained share falls in nearly each round.
FALL = 0.1


@dataclass
class GlobalModel:
    """What the last complete round has left.

    Parameters
    ----------
    tensors : dict of str to Tensor
        The global model.
    token : str
        State token of the clients that hold all of it but the averaged head; empty before the
        first complete round.
    assignments : dict of str to dict of str to Tensor
        The global units of each client of the last round, by client key and group.
    popularity : dict of str to Tensor
        (L,) how many clients hold each global unit, by group.
    local_head : dict of str to Tensor
        The head that local training goes on from, where that is not the model's own; see
        `StageOutcome`.
    trained_head : dict of str to Tensor
        The average of the trained heads, kept for a round that has to be undone.
    best : dict of str to Tensor
        The model that is handed out while this one's features are much worse; empty if they are
        not.
    remembered : dict of str to RememberedMoments
        What clients sent in the last head stages, by client key; see `FedMA`'s `head_memory`.
    reference_share : float
        How much of the averaged trained head the next solved head is a step from.
    unexplained : float
        The least share of the classes' variance that a round's features have left unexplained.
    fell : bool
        Whether a later round's features left much more of it.
    narrow : tuple of NarrowHead
        Solved heads of the narrow models that clients hold.
    head_averaged : bool
        Whether the clients' loss is none that a head could be solved for, so that nobody is asked
        for moments any more.
    """

    tensors: dict[str, Tensor]
    token: str = ""
    assignments: dict[str, Assignments] = field(default_factory=dict)
    popularity: dict[str, Tensor] = field(default_factory=dict)
    local_head: dict[str, Tensor] = field(default_factory=dict)
    trained_head: dict[str, Tensor] = field(default_factory=dict)
    best: dict[str, Tensor] = field(default_factory=dict)
    remembered: dict[str, RememberedMoments] = field(default_factory=dict)
    reference_share: float = FIRST_SHARE
    unexplained: float = 1.0
    fell: bool = False
    narrow: tuple[NarrowHead, ...] = ()
    head_averaged: bool = False

    @property
    def to_train(self) -> dict[str, Tensor]:
        """The tensors that local training begins with."""
        return {**self.tensors, **self.local_head}

    def narrow_start(self, units: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The head that a narrow model's local training goes on from; empty: the whole model's."""
        found = self.narrow_head(units)
        return {} if found is None else found.local_head

    def narrow_head(self, units: Mapping[str, Tensor]) -> NarrowHead | None:
        """The solved head of the model of these units, if it has one."""
        return next((head for head in self.narrow if same_units(head.units, units)), None)

    @property
    def handed_out(self) -> dict[str, Tensor]:
        """The model that users get."""
        return self.best or self.tensors

    def next_share(self, factor: float) -> float:
        """The share of the round after this one, within its bounds."""
        return min(max(self.reference_share * factor, LEAST_SHARE), MOST_SHARE)

    def has_fallen(self, unexplained: float) -> bool:
        """Whether a round's features are much worse than the best so far, now or before.

        Then the solved head, from which local training goes on, is too much for the learning rate.
        """
        return self.fell or self.is_much_worse(unexplained)

    def is_much_worse(self, unexplained: float) -> bool:
        """Whether a round's features are much worse than the best so far."""
        return unexplained > self.unexplained + FALL

    def better_than(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The model handed out so far, to be handed out instead of a worse one of its widths."""
        kept = self.handed_out
        alike = all(kept[name].shape == tensor.shape for name, tensor in tensors.items())
        return dict(kept) if alike else {}

    def falls_now(self, unexplained: float) -> bool:
        """Whether a round's features are the first to be much worse."""
        return self.has_fallen(unexplained) and not self.fell

    def before_fall(self) -> GlobalModel:
        """The same model, after a round that was undone: training goes on from another head."""
        return replace(self, local_head=self.trained_head, fell=True)

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> GlobalModel:
        """The model with other values; no client holds them, so that all are sent everything.

        Raises
        ------
        ValueError
            If names or shapes are others.
        """
        for name, tensor in self.tensors.items():
            if name not in tensors or tensors[name].shape != tensor.shape:
                theirs = tuple(tensors[name].shape) if name in tensors else "missing"
                raise ValueError(
                    f"the arrays that a round begins with: tensor {name!r} is {theirs}; the last "
                    f"round has left {tuple(tensor.shape)}. Change values in `aggregate_train`, "
                    "not shapes."
                )
        values = {name: tensors[name].to(tensor.dtype) for name, tensor in self.tensors.items()}
        token = f"{self.token}.changed" if self.token else ""
        return replace(
            self, tensors=values, token=token, local_head={}, trained_head={}, best={}, narrow=()
        )

    def selection(self, client_key: str, group: str, size: int) -> Tensor:
        """The global units that make up a client's local model.

        Its own of the last round; for a new or returning client the most popular ones.
        """
        if client_key in self.assignments:
            return self.assignments[client_key][group]
        if group not in self.popularity:
            return torch.arange(size)
        order = torch.argsort(self.popularity[group], descending=True, stable=True)
        return order[:size].sort().values


def count_parameters(tensors: Mapping[str, Tensor]) -> int:
    """Numbers in a state dict."""
    return sum(tensor.numel() for tensor in tensors.values())
