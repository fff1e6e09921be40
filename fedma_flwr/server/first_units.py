"""Narrow clients of FedAvg and FedProx: HeteroFL (Diao et al., ICLR 2021).

A narrow client is sent the first units of every group, and an entry of the model is averaged over
those who hold it. The model's spec says where units are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from logging import WARNING

import torch
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.supercore import log
from torch import Tensor

from fedma_flwr import protocol
from fedma_flwr.averaging.all_uploads import as_dtype
from fedma_flwr.averaging.holders import holding_mask
from fedma_flwr.structure import PermutationSpec
from fedma_flwr.structure.narrowing import first_units


class FirstUnits:
    """The first units of a model, for clients of any ratio.

    Parameters
    ----------
    spec : PermutationSpec or None
        The model's; None: no client may be narrow.
    """

    def __init__(self, spec: PermutationSpec | None) -> None:
        self.spec = spec
        self._warned = False

    def fitting(self, nodes: Iterable[int], ratios: Mapping[int, float]) -> list[int]:
        """The nodes that can be sent something: without a spec none that is narrow."""
        kept = [node for node in nodes if self.spec is not None or ratios[node] == 1.0]
        if len(kept) < len(ratios) and not self._warned:
            self._warned = True
            log(
                WARNING,
                "Clients on nodes %s are left out: they are narrow (client-width), but the "
                "strategy does not know where the model's units are. Give it `model` and "
                "`example_inputs`, or `spec`.",
                sorted(ratios.keys() - set(kept))[:5],
            )
        return kept

    def narrow(self, arrays: ArrayRecord, ratio: float) -> ArrayRecord:
        """Arrays of the whole model, at a ratio."""
        if self.spec is None or ratio == 1.0:
            return arrays
        tensors = protocol.to_tensors(arrays)
        return protocol.to_arrays(self.spec.select(tensors, first_units(self.spec, ratio)))

    def give(
        self, messages: Iterable[Message], ratios: Mapping[int, float], arrays_key: str
    ) -> None:
        """Put into each message what its client's width is to be sent."""
        made: dict[float, ArrayRecord] = {}
        for message in messages:
            ratio = ratios[message.metadata.dst_node_id]
            if ratio < 1.0:
                whole = message.content.array_records[arrays_key]
                if ratio not in made:
                    made[ratio] = self.narrow(whole, ratio)
                message.content = RecordDict({**message.content, arrays_key: made[ratio]})

    def average(
        self,
        models: Sequence[ArrayRecord],
        weights: Sequence[float],
        ratios: Sequence[float],
        last: Mapping[str, Tensor],
    ) -> ArrayRecord:
        """The mean of models of several widths, entry by entry over those who hold it.

        Parameters
        ----------
        models : sequence of J ArrayRecord
            What the clients sent.
        weights, ratios : sequence of J float
            What each counts for, and how wide it is.
        last : mapping of str to Tensor
            The last global model: an entry that nobody holds keeps its value.
        """
        spec = self.spec
        if spec is None:
            raise ValueError("there is no spec to average models of several widths by")
        sums = {n: torch.zeros(t.shape, dtype=torch.float64) for n, t in last.items()}
        masses = {n: torch.zeros(t.shape, dtype=torch.float64) for n, t in last.items()}
        for arrays, weight, ratio in zip(models, weights, ratios, strict=True):
            units = first_units(spec, ratio)
            wide = spec.expand(protocol.to_tensors(arrays), units, spec.sizes)
            for name, tensor in wide.items():
                mask = weight * holding_mask(spec, name, units, spec.sizes)
                sums[name] += mask * tensor.to(torch.float64)
                masses[name] += mask
        means = {n: torch.where(masses[n] > 0, sums[n] / masses[n], t) for n, t in last.items()}
        return protocol.to_arrays({n: as_dtype(means[n], t.dtype) for n, t in last.items()})
