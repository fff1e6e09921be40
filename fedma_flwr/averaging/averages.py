"""How the clients' values of one entry become one: a mean, or something more robust."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedma_flwr.averaging.clipping import clipped_mean
from fedma_flwr.averaging.robust import near_the_median, trimmed_means

MEAN, MEDIAN, TRIMMED_MEAN = "mean", "median", "trimmed_mean"
CENTRED_CLIPPING = "centred_clipping"
AVERAGES = (MEAN, MEDIAN, TRIMMED_MEAN, CENTRED_CLIPPING)
_TINY = torch.finfo(torch.float64).tiny
_BLOCK = 2**20  # numbers that are added at a time
_STACKED = 64  # clients whose tensors may be there at once
_WHOLE = 32  # columns that torch adds at a time, at most


@dataclass(frozen=True)
class Averaging:
    """How the clients' values of one entry become one.

    Parameters
    ----------
    kind : {"mean", "median", "trimmed_mean", "centred_clipping"} (default: "mean")
        The (weighted) mean, median, or mean of what is left between the two tails; or the mean
        with deviations from it shortened, see `clipped_mean`.
    trimmed_share : float (default: 0.2)
        ``trimmed_mean``: the share of the cohort's weight that is cut off at either end, from 0
        to below 0.5; where few clients hold an entry, at most all but its median.
    """

    kind: str = MEAN
    trimmed_share: float = 0.2

    @property
    def robust(self) -> bool:
        """Whether this is more than a mean."""
        return self.kind != MEAN

    @property
    def of_statistics(self) -> Averaging:
        """The rule for running statistics: shortened means and squares need not go together."""
        return replace(self, kind=MEDIAN) if self.kind == CENTRED_CLIPPING else self

    def combine(
        self,
        values: Sequence[Tensor],
        weights: Sequence[Tensor],
        cohort_weight: float | None = None,
    ) -> Tensor:
        """The average of J tensors, entry by entry.

        Parameters
        ----------
        values : sequence of J tensors
            All of one shape.
        weights : sequence of J tensors
            Weight of each client's entries, 0 where it does not hold them; broadcast to the shape
            of the values.
        cohort_weight : float, optional
            Of which `trimmed_share` is taken. None: entry by entry, that of its holders.

        Returns
        -------
        Tensor
            In float64; 0 where nobody holds an entry.
        """
        if not self.robust:
            if cohort_weight is None:
                return _mean(values, weights)
            return self.of_holders(values, weights, cohort_weight)[0]
        shape = values[0].shape or torch.Size([1])
        tensors = [value.reshape(shape) for value in values]
        wide = [weight.to(torch.float64).expand(shape) for weight in weights]
        if self.kind == CENTRED_CLIPPING:
            return clipped_mean(tensors, wide).reshape(values[0].shape)
        return self._without_tails(tensors, wide, cohort_weight).reshape(values[0].shape)

    def _without_tails(
        self, tensors: Sequence[Tensor], wide: Sequence[Tensor], cohort_weight: float | None
    ) -> Tensor:
        """The median or trimmed mean of J tensors, with weights of their shape."""
        total = _sum(wide)
        near = near_the_median(tensors, wide)
        alone = _sum([w * is_near for w, is_near in zip(wide, near, strict=True)]) == 0
        # Where only clients that are far hold an entry, they are all there is.
        say = [w if is_near else w * alone for w, is_near in zip(wide, near, strict=True)]
        cut = total
        if self.kind == TRIMMED_MEAN:  # who has no say is cut off already
            cohort = total if cohort_weight is None else torch.full_like(total, cohort_weight)
            silent = total - _sum(say)
            cut = (self.trimmed_share * cohort - silent).clamp_min(0.0)
        return trimmed_means(tensors, say, cut)

    def of_holders(
        self, values: Sequence[Tensor], weights: Iterable[Tensor], cohort_weight: float
    ) -> tuple[Tensor, Tensor]:
        """The average of J tensors over those who hold an entry, and where anybody does.

        Parameters
        ----------
        values, weights, cohort_weight
            As for `combine`. A mean asks for one client's weights after the other's.

        Returns
        -------
        Tensor
            In float64; 0 where nobody holds an entry.
        Tensor
            Bool, of the same shape.
        """
        if not self.robust:
            return _mean_of_holders(values, weights)
        given = list(weights)
        return self.combine(values, given, cohort_weight), _sum(given) > 0


def blocks(shape: Sequence[int], copies: int) -> Iterator[slice]:
    """Rows of a tensor at a time, so many that `copies` of them stay small.

    Torch adds the columns of a sum in groups of a few, and what is left over one by one: blocks are
    made of whole groups, and the last one has the rest, so that the last bit is the same as without
    blocks.
    """
    length = math.prod(shape[1:])
    rows = max(_BLOCK // max(copies * length, 1) // _WHOLE, 1) * _WHOLE
    number = max(shape[0] // rows, 1)
    for block in range(number):
        yield slice(block * rows, shape[0] if block == number - 1 else (block + 1) * rows)


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    """The sum of J tensors of one shape with at least one axis."""
    result = torch.empty(tensors[0].shape, dtype=tensors[0].dtype)
    for rows in blocks(result.shape, len(tensors)):
        result[rows] = torch.stack([tensor[rows] for tensor in tensors]).sum(0)
    return result


def _mean(values: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """The mean where everybody holds everything: sums of values times shares of the weight.

    Dividing a sum of products would differ in the last bit, and training makes more of that. The
    tensors of many clients are not there at once, and only their sum of products is.
    """
    if len(values) > _STACKED:
        return _mean_of_holders(values, weights)[0]
    shape = values[0].shape or torch.Size([1])
    tensors = [value.reshape(shape) for value in values]
    wide = [weight.to(torch.float64).expand(shape) for weight in weights]
    mean = torch.empty(shape, dtype=torch.float64)
    for rows in blocks(shape, len(tensors)):
        masses = torch.stack([weight[rows] for weight in wide])
        stacked = torch.stack([value[rows].to(torch.float64) for value in tensors])
        mean[rows] = (stacked * (masses / masses.sum(0).clamp_min(_TINY))).sum(0)
    return mean.reshape(values[0].shape)


def _mean_of_holders(values: Sequence[Tensor], weights: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """The mean over those who hold an entry, as running sums: one client at a time."""
    total = torch.zeros(values[0].shape, dtype=torch.float64)
    mass = torch.zeros(values[0].shape, dtype=torch.float64)
    for value, weight in zip(values, weights, strict=True):
        total += value.to(torch.float64) * weight
        mass += weight
    held = mass > 0
    return total.div_(mass.clamp_min_(_TINY)), held
