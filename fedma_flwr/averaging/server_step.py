"""The server's step from the last global model, expressed in the round's new units.

The assignments tell which new global unit each client's unit has become, and a client's selection
tells which unit of the last global model it was. The last global model can therefore be expressed
in the new units: as the mean, over the clients that hold a unit, of what they started from. Two
things need it: a damped server step (FedAvgM's `server_learning_rate`; Hsu et al., 2019, Reddi et
al., 2021), and the rows of the head for classes that nobody in a cohort has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedma_flwr.averaging.client_update import ClientUpdate
from fedma_flwr.averaging.head import keep_absent_rows
from fedma_flwr.averaging.holders import holding_mask
from fedma_flwr.structure import PermutationSpec


@dataclass(frozen=True)
class RoundStart:
    """What the clients of a round have started from, and where its units are now.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        The last global model.
    selections : sequence of mapping of str to Tensor
        For each client the (n,) units of the last global model that it began with, by group.
    assignments : sequence of mapping of str to Tensor
        For each client the (n,) new global unit of each of its units, by group matched so far.
    widths : mapping of str to int
        The new global width of each group matched so far.
    old_widths : mapping of str to int, optional
        Those of the last global model, where its tensors may not tell.
    """

    tensors: Mapping[str, Tensor]
    selections: Sequence[Mapping[str, Tensor]]
    assignments: Sequence[Mapping[str, Tensor]]
    widths: Mapping[str, int]
    old_widths: Mapping[str, int] = field(default_factory=dict)

    def after_matching(
        self, assignments: Sequence[Mapping[str, Tensor]], widths: Mapping[str, int]
    ) -> RoundStart:
        """The same start, with the groups that have been matched since."""
        joined = [{**old, **new} for old, new in zip(self.assignments, assignments, strict=True)]
        return replace(self, assignments=joined, widths={**self.widths, **widths})

    def in_new_units(self, spec: PermutationSpec, name: str) -> tuple[Tensor, Tensor]:
        """Express one tensor of the last global model in the new global units.

        Parameters
        ----------
        spec : PermutationSpec
            The model's spec.
        name : str
            The tensor.

        Returns
        -------
        pair of Tensor
            Mean over the clients that hold an entry, float64, at the new widths; and whether any
            client holds it.
        """
        groups = spec.tensor_groups(name)
        source = {name: self.tensors[name].to(torch.float64)}
        total, holders = torch.zeros(()), torch.zeros(())
        for selection, assignment in zip(self.selections, self.assignments, strict=True):
            begun = {group: selection[group] for group in groups}
            local = spec.select(source, begun, self.old_widths)
            own = {group: assignment[group] for group in groups & self.widths.keys()}
            wide = spec.expand(local, own, self.widths)[name]
            # Groups that are not matched yet are as wide as the client's own.
            begun_widths = {g: len(units) for g, units in begun.items()}
            widths = {**spec.sizes, **begun_widths, **self.widths}
            held = holding_mask(spec, name, own, widths)
            total, holders = total + wide * held, holders + held
        holders = holders.expand(total.shape)
        return total / holders.clamp_min(1.0), holders > 0


def step_towards(
    mean: Tensor, before: Tensor, known: Tensor, server_learning_rate: float
) -> Tensor:
    """Go a part of the way from the last global model to what the clients' mean is.

    Parameters
    ----------
    mean : Tensor
        What the round's clients average to.
    before, known : Tensor
        As `RoundStart.in_new_units` gives them.
    server_learning_rate : float
        1 goes all the way, 0 nowhere.

    Returns
    -------
    Tensor
        In the dtype of `mean`; entries that are not known before are the mean's.
    """
    damped = before + server_learning_rate * (mean.to(torch.float64) - before)
    # An observer's minimum is infinite before it has seen anything.
    return torch.where(known & before.isfinite(), damped.to(mean.dtype), mean)


def take_step(
    spec: PermutationSpec,
    settled: Mapping[str, Tensor],
    start: RoundStart,
    updates: Sequence[ClientUpdate],
    server_learning_rate: float = 1.0,
) -> dict[str, Tensor]:
    """Return settled tensors after the server's step, with the rows of absent classes kept.

    Parameters
    ----------
    spec : PermutationSpec
        The model's spec.
    settled : mapping of str to Tensor
        What the cohort's clients average to. Integers and running statistics are not touched.
    start : RoundStart
        What the clients have started from.
    updates : sequence of ClientUpdate
        What the cohort's clients sent.
    server_learning_rate : float (default: 1.0)
        See `step_towards`.

    Returns
    -------
    dict of str to Tensor
        The same shapes and dtypes.
    """
    result = dict(settled)
    for name, mean in settled.items():
        head = name in spec.head
        if not mean.is_floating_point() or name in spec.statistics:
            continue
        if server_learning_rate == 1 and not head:
            continue
        before, known = start.in_new_units(spec, name)
        if server_learning_rate != 1:
            mean = step_towards(mean, before, known, server_learning_rate)
        if head:
            mean = keep_absent_rows(spec, name, mean, updates, before=before, known=known)
        result[name] = mean
    return result
