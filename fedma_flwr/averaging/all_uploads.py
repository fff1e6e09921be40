"""What is averaged over all clients: the head, and what has no axis matched in a stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedma_flwr.averaging.averages import Averaging
from fedma_flwr.averaging.client_update import ClientUpdate
from fedma_flwr.averaging.head import class_weights
from fedma_flwr.averaging.holders import holding_mask
from fedma_flwr.averaging.wide_tensors import of_each
from fedma_flwr.matching import Matching
from fedma_flwr.structure import PermutationSpec, PlannedStage


@dataclass(frozen=True)
class AllUploads:
    """What all clients have sent, put where the matchings say.

    Parameters
    ----------
    spec : PermutationSpec
        The model's spec.
    updates : sequence of J ClientUpdate
        What the clients sent.
    wide : sequence of mapping of str to Tensor
        Their tensors at the global widths of all groups matched so far; behind them the last global
        model's, if it has taken part.
    assignments : sequence of mapping of str to Tensor
        The same of their units, by group matched in this stage.
    widths : mapping of str to int
        Global width of every group matched so far.
    """

    spec: PermutationSpec
    updates: Sequence[ClientUpdate]
    wide: Sequence[Mapping[str, Tensor]]
    assignments: Sequence[Mapping[str, Tensor]]
    widths: Mapping[str, int]

    def average_rest(
        self, stage: PlannedStage, settled: dict[str, Tensor], *, averaging: Averaging
    ) -> bool:
        """Average the head and what has no axis matched in this stage; whether by class counts.

        In one-shot matching the head has such an axis. Where a client lacks a unit its head has 0:
        what the unit adds to the outputs is averaged over all clients, as the outputs are. A narrow
        client says nothing about units that it lacks.

        Parameters
        ----------
        stage : PlannedStage
            The stage that ends.
        settled : dict of str to Tensor
            What is settled already; gets the rest.
        averaging : Averaging
            How the clients' values of an entry become one.
        """
        by_class = False
        for name in stage.settles:
            if name in settled:
                continue
            counts = None
            if name in self.spec.head:
                counts = self._class_weights(name, capped=averaging.robust)
            rule = averaging.of_statistics if name in self.spec.statistics else averaging
            settled[name] = self.average(name, rule, counts)
            by_class = by_class or counts is not None
        return by_class

    def _class_weights(self, name: str, *, capped: bool) -> Tensor | None:
        updates = self.updates
        if any(update.narrow for update in updates):  # the number of outputs is that of all
            updates = [replace(u, tensors=w) for u, w in zip(updates, self.wide, strict=False)]
        return class_weights(self.spec, name, updates, capped=capped)

    def average(self, name: str, averaging: Averaging, weights: Tensor | None = None) -> Tensor:
        """The average of a tensor over all clients; without weights by examples, as in FedAvg."""
        if weights is None:
            examples = [update.examples for update in self.updates]
            weights = torch.tensor(examples, dtype=torch.float64)
        values = of_each(self.wide[: len(self.updates)], name)
        if not any(update.narrow for update in self.updates):
            return as_dtype(averaging.combine(values, list(weights)), values[0].dtype)
        masks = [
            weight * self._mask(name, number, values[0]) for number, weight in enumerate(weights)
        ]
        total = sum(update.examples for update in self.updates)
        mean, held = averaging.of_holders(values, masks, total)
        last = len(self.wide) > len(self.updates)
        otherwise = self.wide[-1][name] if last else self.spec.padding(name)
        return as_dtype(torch.where(held, mean, otherwise), values[0].dtype)

    def _mask(self, name: str, number: int, like: Tensor) -> Tensor:
        """1 where a client holds an entry; all but narrow ones hold all."""
        update = self.updates[number]
        held = {**update.held, **self.assignments[number]} if update.narrow else {}
        widths = {**self.spec.sizes, **self.spec.widths({name: like}, self.widths), **self.widths}
        return holding_mask(self.spec, name, held, widths)


def of_clients(matching: Matching, clients: int) -> Matching:
    """A matching of clients and the last global model, without the latter."""
    assignments = matching.assignments[:clients]
    popularity = matching.popularity.copy()
    for last in matching.assignments[clients:]:
        popularity[last] -= 1
    return replace(matching, assignments=assignments, popularity=popularity)


def as_dtype(mean: Tensor, dtype: torch.dtype) -> Tensor:
    """A float64 average in the dtype of what was averaged; whole numbers are rounded."""
    return mean.to(dtype) if dtype.is_floating_point else mean.round().to(dtype)


def widened(spec: PermutationSpec, update: ClientUpdate, widths: Mapping[str, int]) -> ClientUpdate:
    """A narrow client's update at the global widths of the groups matched in earlier stages."""
    held = {group: update.held[group] for group in update.held if group in widths}
    return replace(update, tensors=spec.expand(update.tensors, held, widths))
