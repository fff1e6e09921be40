"""The moments that determine the solved head: sums over examples, which add up over clients.

With the head's inputs ``phi`` (d numbers an example) and its targets ``y`` (C numbers, 1 in all),
they are ``gram = sum phi phi^T`` and ``cross = sum y [phi, 1]^T``. Since the targets of an example
sum to 1, the sums of `phi` are those of the rows of `cross`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: Up to here a client's moments are factorised exactly to see whether they can be moments.
_FACTORISED = 1024
#: Above, in float32 and of inputs of size 1, so much is taken for rounding.
_ROUGH = 1e-2
_BLOCK = 2**17  # numbers that are added at a time
_ROUNDING = 1e-4  # relative: moments cross the wire in float32


@dataclass(frozen=True)
class HeadMoments:
    """Moments of a linear head's inputs and targets.

    Parameters
    ----------
    gram : Tensor
        (d (d + 1) / 2,) the upper triangle of ``sum phi phi^T``, row by row.
    cross : Tensor
        (C, d + 1) ``sum y [phi, 1]^T``; the last column has the class counts.
    """

    gram: Tensor
    cross: Tensor

    @property
    def inputs(self) -> int:
        """The number of the head's inputs, d."""
        return self.cross.shape[1] - 1

    @property
    def examples(self) -> float:
        """The rows that were summed, of all examples or of an average one."""
        return float(self.cross[:, -1].sum())

    def square(self) -> Tensor:
        """``sum [phi, 1] [phi, 1]^T``, (d + 1, d + 1), float64."""
        d = self.inputs
        full = torch.zeros(d + 1, d + 1, dtype=torch.float64)
        rows, columns = torch.triu_indices(d, d).unbind()
        full[rows, columns] = full[columns, rows] = self.gram.to(torch.float64)
        full[d] = full[:, d] = self.cross.to(torch.float64).sum(0)
        return full


def triangle_size(inputs: int) -> int:
    """Numbers in the upper triangle of a (d, d) matrix."""
    return inputs * (inputs + 1) // 2


def upper_triangle(square: Tensor) -> Tensor:
    """The upper triangle of a (d, d) matrix, row by row, (d (d + 1) / 2,)."""
    rows, columns = torch.triu_indices(*square.shape).unbind()
    return square[rows, columns]


def sum_moments(moments: Sequence[HeadMoments], weights: Sequence[float]) -> HeadMoments:
    """The moments of all clients together, float64, as running sums.

    Parameters
    ----------
    moments : sequence of J HeadMoments
        One a client; a client's own scale does not count.
    weights : sequence of J float
        The examples that each client counts for.
    """
    gram = torch.zeros(moments[0].gram.shape, dtype=torch.float64)
    cross = torch.zeros(moments[0].cross.shape, dtype=torch.float64)
    for own, weight in zip(moments, weights, strict=True):
        factor = weight / own.examples
        # In float64; a copy of the whole in that dtype would cost more than the sum.
        for sums, more in zip(gram.split(_BLOCK), own.gram.split(_BLOCK), strict=True):
            sums.add_(more, alpha=factor)
        cross.add_(own.cross, alpha=factor)
    return HeadMoments(gram, cross)


def fault_of(moments: HeadMoments) -> str:
    """Why these can be no moments of any examples; empty if they can.

    They must be finite, with class counts from 0 up, a positive semidefinite ``square`` within
    rounding, and class sums within Cauchy and Schwarz: for each class c and input i,
    ``(sum y_c phi_i)^2 <= sum y_c sum phi_i^2``.
    """
    if not bool(torch.isfinite(moments.gram).all() and torch.isfinite(moments.cross).all()):
        return "they are not finite (NaN or infinity)"
    counts = moments.cross[:, -1].to(torch.float64)
    if bool((counts < 0).any()) or not float(counts.sum()) > 0:
        return "their class counts are not from 0 up, or there are no examples"
    squares = _diagonal(moments)
    if bool((squares < 0).any()):
        return "they have negative squares"
    sums = moments.cross[:, :-1].to(torch.float64)
    slack = 1 + _ROUNDING
    # Whether targets are hard or soft, y_c^2 <= y_c.
    if bool((sums.square() > slack * counts[:, None] * squares + _tiny(squares)).any()):
        return "their class sums are larger than their squares allow"
    if not _semidefinite(moments, squares):
        return "they are not positive semidefinite"
    return ""


def _diagonal(moments: HeadMoments) -> Tensor:
    d = moments.inputs
    steps = torch.arange(d, 0, -1)  # row i of the triangle has d - i numbers
    places = torch.cat([torch.zeros(1, dtype=torch.int64), steps.cumsum(0)[:-1]])
    return moments.gram[places].to(torch.float64)


def _tiny(squares: Tensor) -> float:
    """What is rounding beside the largest of some squares."""
    return _ROUNDING * float(squares.max()) if len(squares) else 0.0


def _semidefinite(moments: HeadMoments, squares: Tensor) -> bool:
    d = moments.inputs
    if d <= _FACTORISED:
        square = moments.square()
        square.diagonal().add_(_ROUNDING * max(float(square.trace()) / (d + 1), 1e-30))
        return int(torch.linalg.cholesky_ex(square).info) == 0
    roots = squares.sqrt().clamp_min(1e-30)
    rows, columns = torch.triu_indices(d, d).unbind()
    square = torch.zeros(d, d)
    square[columns, rows] = (moments.gram / (roots[rows] * roots[columns])).to(torch.float32)
    square.diagonal().add_(_ROUGH)
    return int(torch.linalg.cholesky_ex(square).info) == 0  # it reads the lower triangle
