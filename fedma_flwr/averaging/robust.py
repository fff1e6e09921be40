"""Averages that a minority of hostile clients cannot move at will.

Three defences, each against what the others let pass. Units larger than usual are scaled down to
the usual size before they are matched: as new units, which nobody else holds, they would be
averaged with nothing. Clients far from the median of a tensor have no say in it where others have:
zeros, in particular, lie between positive and negative weights, where no tail is cut off. What is
left is averaged by medians or trimmed means, coordinate by coordinate (Yin et al., "Byzantine-
Robust Distributed Learning", 2018), over the clients that hold a unit; what is cut off is a share
of the whole cohort, not of the holders: a hostile minority may meet in one unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_BLOCK = 2**21  # numbers that are sorted at a time: sorting needs several copies
_IN_CACHE = 2**15  # numbers that stay near the processor
_FAR = 2.0  # times the median of the clients' distances from the median
#: What is smaller is no unusual size: biases that begin at 0 have no scale to be compared with.
SMALL = 0.1
_TINY = torch.finfo(torch.float64).tiny
_HALF = 0.5 - 1e-9  # whoever cuts so much keeps the median


def near_the_median(values: Sequence[Tensor], weights: Sequence[Tensor]) -> list[bool]:
    """Whether each client is no further from the median of a tensor than is usual."""
    median = trimmed_means(values, weights, torch.full(values[0].shape, torch.inf).double())
    distances = []
    for value, weight in zip(values, weights, strict=True):
        square = (value.to(torch.float64) - median) ** 2 * weight
        distances.append(float((square.sum() / weight.sum().clamp_min(_TINY)).sqrt()))
    usual = sorted(distances)[len(distances) // 2]
    return [distance <= _FAR * usual for distance in distances]


def trimmed_means(values: Sequence[Tensor], weights: Sequence[Tensor], cut: Tensor) -> Tensor:
    """Weighted means without a weight of `cut` at either end; medians where nothing is left.

    The values are (J) tensors of one shape with at least one axis, as is the cut.
    """
    shape = values[0].shape
    rows = max(1, _BLOCK * shape[0] // max(len(values) * shape.numel(), 1))
    result = torch.empty(shape, dtype=torch.float64)
    for start in range(0, shape[0], rows):
        block = slice(start, start + rows)
        result[block] = _trimmed_mean(
            torch.stack([value[block].to(torch.float64) for value in values]),
            torch.stack([weight[block] for weight in weights]),
            cut[block],
        )
    return result


def _trimmed_mean(values: Tensor, weights: Tensor, cut: Tensor) -> Tensor:
    """Average over the first axis of (J, ...) tensors."""
    values, order = values.sort(dim=0)
    ends = weights.gather(0, order).cumsum(0)  # (J, ...): weight up to and with each value
    starts = torch.cat([torch.zeros_like(ends[:1]), ends[:-1]])
    kept = (torch.minimum(ends, ends[-1] - cut) - torch.maximum(starts, cut)).clamp_min(0.0)
    mean = (kept * values).sum(0) / kept.sum(0).clamp_min(_TINY)
    return torch.where(cut < _HALF * ends[-1], mean, _median(values, ends))


def _median(values: Tensor, ends: Tensor) -> Tensor:
    """The weighted median of sorted values; the middle of two where the weight splits evenly."""
    half = ends[-1:] / 2
    lower = (ends < half).sum(0, keepdim=True).clamp_max(len(values) - 1)
    upper = (ends <= half).sum(0, keepdim=True).clamp_max(len(values) - 1)
    middle = (values.gather(0, lower) + values.gather(0, upper)) / 2
    return torch.where(ends[-1] > 0, middle[0], torch.zeros_like(middle[0]))


def row_sizes(tensor: Tensor) -> Tensor:
    """Root mean square of each slice along the first axis, (L,): of each unit, bias or class."""
    if not tensor.numel():
        return torch.zeros(1, dtype=torch.float64)
    rows = tensor.reshape(tensor.shape[0] if tensor.dim() else 1, -1)
    few = max(_IN_CACHE // rows.shape[1], 1)  # no second copy of the tensor in float64
    return torch.cat([part.to(torch.float64).square().mean(1) for part in rows.split(few)]).sqrt()


def lower_median(values: Sequence[float]) -> float:
    """The lower one of the two in the middle; 0 if there are none."""
    return sorted(values)[(len(values) - 1) // 2] if values else 0.0


def scale_down(
    clients: Sequence[Mapping[str, Tensor]], names: Sequence[str]
) -> list[dict[str, Tensor]]:
    """Clients' tensors without units that are larger than a client's largest usually is.

    Parameters
    ----------
    clients : sequence of mapping of str to Tensor
        One a client.
    names : sequence of str
        The tensors to scale; floating.

    Returns
    -------
    list of dict of str to Tensor
        The others are those of `clients`.
    """
    results = [dict(tensors) for tensors in clients]
    for name in names:
        sizes = [row_sizes(tensors[name]) for tensors in clients]
        usual = max(lower_median([float(size.max()) for size in sizes]), SMALL)
        for tensors, size in zip(results, sizes, strict=True):
            tensor = tensors[name]
            if float(size.max()) > usual:
                factors = (usual / size.clamp_min(_TINY)).clamp_max(1.0)
                factors = (
                    factors.reshape([-1] + [1] * (tensor.dim() - 1)) if tensor.dim() else factors[0]
                )
                tensors[name] = (tensor * factors).to(tensor.dtype)
    return results
