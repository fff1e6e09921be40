"""No unit grows far beyond the usual one in a round: so sizes cannot be driven up, round by round.

A bound that follows the largest unit of the last model, or of the clients that were sent it,
follows what one hostile client has put there. The median over all units and clients does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedma_flwr.averaging.client_update import ClientUpdate
from fedma_flwr.averaging.robust import SMALL, lower_median, row_sizes
from fedma_flwr.matching.memory import give_back
from fedma_flwr.structure import PermutationSpec

#: Times the median client's size, and so many times the clients' median distance from it beyond it:
#: what more is, is not among the honest. Larger, and a mean would grow with every round, and the
#: usual size with it.
_TIMES, _DEVIATIONS = 1.5, 5.0
_TINY = 1e-300
_JUST_BELOW = 1 - 1e-6  # of a bound, so that rounding does not lead beyond it


def bound_units(
    spec: PermutationSpec,
    updates: Mapping[int, ClientUpdate],
    model: Mapping[str, Tensor],
    max_norm_ratio: float,
) -> dict[int, ClientUpdate]:
    """Updates whose units are not far larger than the median over all units and clients.

    A client's unit may have the square root of `max_norm_ratio` times the usual size (running
    statistics, which differ more: `max_norm_ratio` times), or what is not out of all proportion to
    the other clients' units of its rank: the largest of a client's units is compared with the
    others' largest. That is 1.5 times the median client's, or five times the clients' median
    distance from it beyond it. The same holds for the root mean square of a tensor's units. What
    is larger is made as large as that; nobody is refused. As many units as the initial model has
    say what is usual, the smallest ones: growth adds none that do.

    Parameters
    ----------
    spec : PermutationSpec
        The model's spec.
    updates : mapping of int to ClientUpdate
        What the clients sent, by node.
    model : mapping of str to Tensor
        The last global model.
    max_norm_ratio : float
        See `Limits`.

    Returns
    -------
    dict of int to ClientUpdate
        By node; the same objects where nothing was out of bounds.
    """
    if not updates or math.isinf(max_norm_ratio):
        return dict(updates)
    changed: dict[int, dict[str, Tensor]] = {node: {} for node in updates}
    for name in next(iter(updates.values())).tensors:
        if not model[name].dtype.is_floating_point or not model[name].dim():
            continue
        sizes = {}
        for number, (node, update) in enumerate(updates.items()):
            sizes[node] = unit_sizes(spec, name, update.tensors[name])
            give_back(number)
        for node, factors in _factors(spec, name, sizes, model[name], max_norm_ratio).items():
            changed[node][name] = cut_rows(spec, name, updates[node].tensors[name], factors)
    return {
        node: replace(u, tensors={**u.tensors, **changed[node]}) if changed[node] else u
        for node, u in updates.items()
    }


def _factors(
    spec: PermutationSpec,
    name: str,
    sizes: Mapping[int, Tensor],
    last: Tensor,
    max_norm_ratio: float,
) -> dict[int, Tensor]:
    """What the (L,) rows of a tensor are to be multiplied by, of the clients out of bounds."""
    units, small = spec.shapes()[name][0], SMALL / math.sqrt(_row_length(spec, name, last))
    statistics = name in spec.statistics
    if last.dim() == 1 and not statistics:  # biases begin at 0: they have no scale of their own
        small *= math.sqrt(max_norm_ratio)
    usual = max(
        lower_median([_usual(own, units) for own in sizes.values()]),
        _usual(unit_sizes(spec, name, last), units),
        small,
    )
    least = usual * (max_norm_ratio if statistics else math.sqrt(max_norm_ratio))
    ranks = _usual_client(list(sizes.values()))
    together = _most(torch.tensor([_mean_size(own) for own in sizes.values()]).clamp_min(small))
    found = {}
    for node, own in sizes.items():
        if not own.numel():
            continue
        cut = torch.minimum(own, _allowed(own, ranks, least))
        if not statistics and _mean_size(cut) > together:
            cut = cut * (together / _mean_size(cut))
        if bool((cut < own).any()):
            found[node] = cut / own.clamp_min(_TINY)
    return found


def unit_sizes(spec: PermutationSpec, name: str, tensor: Tensor) -> Tensor:
    """Root mean square of each slice along the first axis, (L,); a variance's is its deviation."""
    if name in spec.variances:
        tensor = tensor.clamp_min(0.0).sqrt()
    return row_sizes(tensor)


def cut_rows(spec: PermutationSpec, name: str, tensor: Tensor, factors: Tensor) -> Tensor:
    """The tensor with the sizes of its (L,) rows times `factors`, where those are below 1."""
    factors = factors.clamp_max(1.0)
    factors = torch.where(factors < 1.0, factors * _JUST_BELOW, factors)
    if name in spec.variances:
        factors = factors.square()
    factors = factors.reshape([-1] + [1] * (tensor.dim() - 1))
    return torch.where(factors < 1.0, tensor * factors, tensor).to(tensor.dtype)


def _usual(sizes: Tensor, units: int) -> float:
    """The median of so many of the smallest units."""
    smallest = sizes.sort().values[: max(units, 1)]
    return float(smallest[(len(smallest) - 1) // 2]) if len(smallest) else 0.0


def _mean_size(sizes: Tensor) -> float:
    return float(sizes.square().mean().sqrt()) if sizes.numel() else 0.0


def _row_length(spec: PermutationSpec, name: str, tensor: Tensor) -> int:
    """Numbers of a unit: new layers have rows of one norm, whatever their length."""
    if name in spec.statistics:
        return 1
    return max(tensor.numel() // max(tensor.shape[0], 1), 1)


def _usual_client(sizes: Sequence[Tensor]) -> Tensor:
    """What a client's largest unit may have, its second largest, and so on.

    Clients of several widths are compared by the share of their units that are larger.
    """
    most = max(len(own) for own in sizes)
    sorted_ = [own.sort(descending=True).values for own in sizes if len(own)]
    if not sorted_:
        return torch.zeros(0, dtype=torch.float64)
    return _most(torch.stack([own[torch.arange(most) * len(own) // most] for own in sorted_]))


def _most(sizes: Tensor) -> Tensor:
    """The largest of the clients' sizes, (J,) or (J, ranks), that is not out of all proportion.

    Of two clients nobody can tell which is: then the larger one is as large as it is.
    """
    median = sizes.sort(dim=0).values[(len(sizes) - 1) // 2]
    distance = (sizes - median).abs().sort(dim=0).values[len(sizes) // 2]
    return torch.maximum(_TIMES * median, median + _DEVIATIONS * distance)


def _allowed(own: Tensor, ranks: Tensor, least: float) -> Tensor:
    """The size that each of a client's units may have."""
    by_rank = ranks[torch.arange(len(own)) * len(ranks) // len(own)].clamp_min(least)
    allowed = torch.empty_like(own)
    allowed[own.argsort(descending=True)] = by_rank
    return allowed
