"""Averages that a minority of hostile clients cannot move at will.

Medians and trimmed means, coordinate by coordinate (Yin et al., "Byzantine-Robust Distributed
Learning", 2018), over the clients that hold a unit. What is cut off at either end is a share of
the whole cohort, not of the holders: a hostile minority may meet in one unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MEAN, MEDIAN, TRIMMED_MEAN = "mean", "median", "trimmed_mean"
AVERAGES = (MEAN, MEDIAN, TRIMMED_MEAN)
_BLOCK = 2**21  # numbers that are sorted at a time: sorting needs several copies
_HALF = 0.5 - 1e-9  # whoever cuts so much keeps the median


@dataclass(frozen=True)
class Averaging:
    """How the clients' values of one entry become one.

    Parameters
    ----------
    kind : {"mean", "median", "trimmed_mean"} (default: "mean")
        The (weighted) mean, median, or mean of what is left between the two tails.
    trimmed_share : float (default: 0.2)
        ``trimmed_mean``: the share of the cohort's weight that is cut off at either end; where
        few clients hold an entry, at most all but its median.

    Raises
    ------
    ValueError
        If there is no such average, or if the share is not from 0 to below 0.5.
    """

    kind: str = MEAN
    trimmed_share: float = 0.2

    def __post_init__(self) -> None:
        if self.kind not in AVERAGES:
            raise ValueError(f"averaging was {self.kind!r}; it must be one of {AVERAGES}.")
        if not 0.0 <= self.trimmed_share < 0.5:
            raise ValueError(
                f"trimmed_share was {self.trimmed_share}; it must be from 0 to below 0.5."
            )

    @property
    def robust(self) -> bool:
        """Whether this is more than a mean."""
        return self.kind != MEAN

    def combine(
        self,
        values: Sequence[Tensor],
        weights: Sequence[Tensor],
        cohort_weight: float | None = None,
    ) -> Tensor:
        """The robust average of J tensors, entry by entry; `kind` is not ``mean``.

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
        shape = values[0].shape or torch.Size([1])
        rows = max(1, _BLOCK * shape[0] // max(len(values) * shape.numel(), 1))
        wide = [weight.to(torch.float64).expand(shape) for weight in weights]
        result = torch.empty(shape, dtype=torch.float64)
        for start in range(0, shape[0], rows):
            block = slice(start, start + rows)
            result[block] = self._combine(
                torch.stack([value.reshape(shape)[block].to(torch.float64) for value in values]),
                torch.stack([weight[block] for weight in wide]),
                cohort_weight,
            )
        return result.reshape(values[0].shape)

    def _combine(self, values: Tensor, weights: Tensor, cohort_weight: float | None) -> Tensor:
        """Average over the first axis of (J, ...) tensors."""
        values, order = values.sort(dim=0)
        ends = weights.gather(0, order).cumsum(0)  # (J, ...): weight up to and with each value
        median = _median(values, ends)
        if self.kind == MEDIAN:
            return median
        total = ends[-1]
        cut = self.trimmed_share * (total if cohort_weight is None else cohort_weight)
        cut = torch.as_tensor(cut, dtype=torch.float64)
        starts = torch.cat([torch.zeros_like(ends[:1]), ends[:-1]])
        kept = (torch.minimum(ends, total - cut) - torch.maximum(starts, cut)).clamp_min(0.0)
        mass = kept.sum(0).clamp_min(torch.finfo(torch.float64).tiny)
        return torch.where(cut < _HALF * total, (kept * values).sum(0) / mass, median)


def _median(values: Tensor, ends: Tensor) -> Tensor:
    """The weighted median of sorted values; the middle of two where the weight splits evenly."""
    half = ends[-1:] / 2
    lower = (ends < half).sum(0, keepdim=True).clamp_max(len(values) - 1)
    upper = (ends <= half).sum(0, keepdim=True).clamp_max(len(values) - 1)
    middle = (values.gather(0, lower) + values.gather(0, upper)) / 2
    return torch.where(ends[-1] > 0, middle[0], torch.zeros_like(middle[0]))
