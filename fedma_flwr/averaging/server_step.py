"""What the global model was before a round, in the units of the round's new global model.

The assignments tell which new global unit each client's unit has become, and a client's selection
tells which unit of the last global model it was. The last global model can therefore be expressed
in the new units: as the mean, over the clients that hold a unit, of what they started from. Two
things need it: a damped server step (FedAvgM's `server_learning_rate`; Hsu et al., 2019, Reddi et
al., 2021), and the rows of the head for classes that nobody in a cohort has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fedma_flwr.averaging import ClientUpdate, holding_mask
from fedma_flwr.structure import PermutationSpec

Known = tuple[Tensor, Tensor]  # values, and where they are known: two tensors of one shape


def in_new_units(
    spec: PermutationSpec,
    name: str,
    starts: Sequence[Tensor],
    assignments: Sequence[Mapping[str, Tensor]],
    widths: Mapping[str, int],
) -> Known:
    """Express one tensor of the last global model in the new global units.

    Parameters
    ----------
    spec : PermutationSpec
        The model's spec.
    name : str
        The tensor.
    starts : sequence of Tensor
        For each client the tensor that it began the round with, at its own widths.
    assignments : sequence of mapping of str to Tensor
        For each client the (n,) new global unit of each of its units, by group.
    widths : mapping of str to int
        The new global width of each group that has been matched.

    Returns
    -------
    pair of Tensor
        Mean over the clients that hold an entry, float64, at the new widths; and whether any
        client holds it.
    """
    groups = spec.tensor_groups(name) & widths.keys()
    total: Tensor | None = None
    holders = torch.zeros(())
    for start, assignment in zip(starts, assignments, strict=True):
        own = {group: assignment[group] for group in groups}
        wide = spec.expand({name: start.to(torch.float64)}, own, widths)[name]
        held = holding_mask(spec, name, own, {**spec.sizes, **spec.widths({name: wide}), **widths})
        total = wide * held if total is None else total + wide * held
        holders = holders + held
    if total is None:
        raise ValueError("starts is empty: there is no client whose start could be expressed")
    holders = holders.expand(total.shape)
    return total / holders.clamp_min(1.0), holders > 0


def step_towards(mean: Tensor, previous: Known, server_learning_rate: float) -> Tensor:
    """Go a part of the way from the last global model to what the clients' mean is.

    Parameters
    ----------
    mean : Tensor
        What the round's clients average to.
    previous : pair of Tensor
        As `in_new_units` gives it.
    server_learning_rate : float
        1 goes all the way, 0 nowhere.

    Returns
    -------
    Tensor
        In the dtype of `mean`; entries that are not known before are the mean's.
    """
    before, known = previous
    damped = before + server_learning_rate * (mean.to(torch.float64) - before)
    return torch.where(known, damped.to(mean.dtype), mean)


def keep_absent_rows(
    spec: PermutationSpec,
    name: str,
    mean: Tensor,
    previous: Known,
    updates: Sequence[ClientUpdate],
) -> Tensor:
    """Keep the head's rows of classes of which no client of the cohort has an example.

    Whoever lacks a class only learns to deny it. Without class counts from every client nothing
    is known about classes, and the mean stays what it is.

    Parameters
    ----------
    spec : PermutationSpec
        The model's spec.
    name : str
        A tensor of the head.
    mean : Tensor
        What the cohort's clients average to.
    previous : pair of Tensor
        As `in_new_units` gives it.
    updates : sequence of ClientUpdate
        What the cohort's clients sent.

    Returns
    -------
    Tensor
        In the dtype of `mean`.
    """
    counts = [update.class_counts for update in updates if update.class_counts is not None]
    dim = spec.output_axis(name)
    if len(counts) < len(updates) or any(len(c) != mean.shape[dim] for c in counts):
        return mean
    absent = torch.stack([count.to(torch.float64) for count in counts]).sum(0) == 0
    rows = absent.reshape([-1 if d == dim else 1 for d in range(mean.dim())])
    before, known = previous
    return torch.where(rows & known, before.to(mean.dtype), mean)


def take_step(
    spec: PermutationSpec,
    settled: Mapping[str, Tensor],
    *,
    before: Callable[[str], Known],
    server_learning_rate: float,
    updates: Sequence[ClientUpdate],
) -> dict[str, Tensor]:
    """Return settled tensors after the server's step, with the rows of absent classes kept.

    Parameters
    ----------
    spec : PermutationSpec
        The model's spec.
    settled : mapping of str to Tensor
        What the cohort's clients average to. Integers and running statistics are not touched.
    before : callable
        Gives a tensor as `in_new_units` does.
    server_learning_rate : float
        See `step_towards`.
    updates : sequence of ClientUpdate
        What the cohort's clients sent.

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
        known = before(name)
        if server_learning_rate != 1:
            mean = step_towards(mean, known, server_learning_rate)
        result[name] = keep_absent_rows(spec, name, mean, known, updates) if head else mean
    return result
