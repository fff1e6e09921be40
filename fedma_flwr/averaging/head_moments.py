"""The moments that determine the solved head: sums over examples, which add up over clients.

With the head's inputs ``phi`` (d numbers an example) and its targets ``y`` (C numbers, 1 in all),
they are ``gram = sum phi phi^T`` and ``cross = sum y [phi, 1]^T``. Since the targets of an example
sum to 1, the sums of `phi` are those of the rows of `cross`.

Targets may be any values, as those of a squared error are. Then `cross` has one row more, of the
target 1, and ``squares = sum y^2`` says how large the values are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: What a client says whose loss tells no targets: no moments will ever come from it.
NO_TARGETS = "The head stage reads targets from the gradient"
#: Up to here a client's moments are factorised exactly to see whether they can be moments.
_FACTORISED = 1024
#: Above, in float32 and of inputs of size 1, so much is taken for rounding.
_ROUGH = 1e-2
_BLOCK = 2**17  # numbers that are added at a time
_ROUNDING = 1e-4  # relative: moments cross the wire in float32
_SAME = 1e-3  # relative: probabilities may come from half precision
_STEPS = 16  # of the search for the least eigenvalue
_NAMES = ("gram", "cross", "expected", "squares")


@dataclass(frozen=True)
class HeadMoments:
    """Moments of a linear head's inputs and targets.

    Parameters
    ----------
    gram : Tensor
        (d (d + 1) / 2,) the upper triangle of ``sum phi phi^T``, row by row.
    cross : Tensor
        (C, d + 1) ``sum y [phi, 1]^T``; the last column has the class counts. With `squares`
        (C + 1, d + 1): the last row is ``sum [phi, 1]``.
    expected : Tensor, optional
        (C, d + 1) ``sum p [phi, 1]^T`` with the probabilities ``p`` that a reference head gives.
    squares : Tensor, optional
        (C,) ``sum y^2``, if the targets are values and no classes.
    """

    gram: Tensor
    cross: Tensor
    expected: Tensor | None = None
    squares: Tensor | None = None

    @property
    def inputs(self) -> int:
        """The number of the head's inputs, d."""
        return self.cross.shape[1] - 1

    @property
    def outputs(self) -> int:
        """The number of the head's outputs, C."""
        return len(self.cross) - int(self.squares is not None)

    @property
    def targets(self) -> Tensor:
        """``sum y [phi, 1]^T``, (C, d + 1), float64."""
        return self.cross[: self.outputs].to(torch.float64)

    @property
    def totals(self) -> Tensor:
        """``sum [phi, 1]``, (d + 1,), float64."""
        rows = self.cross.to(torch.float64)
        return rows.sum(0) if self.squares is None else rows[-1]

    @property
    def examples(self) -> float:
        """The rows that were summed, of all examples or of an average one."""
        return float(self.totals[-1])

    @property
    def target_square(self) -> float:
        """``sum |y|^2``, as if soft labels of classes were hard ones."""
        return self.examples if self.squares is None else float(self.squares.sum())

    def named(self) -> dict[str, Tensor]:
        """The tensors by name, for a file."""
        values = {name: getattr(self, name) for name in _NAMES}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], prefix: str) -> HeadMoments:
        """What `named` has given, of names with a prefix."""
        found = {name: tensors[prefix + name] for name in _NAMES if prefix + name in tensors}
        return cls(**found)

    def square(self) -> Tensor:
        """``sum [phi, 1] [phi, 1]^T``, (d + 1, d + 1), float64."""
        d = self.inputs
        full = torch.zeros(d + 1, d + 1, dtype=torch.float64)
        rows, columns = torch.triu_indices(d, d).unbind()
        full[rows, columns] = full[columns, rows] = self.gram.to(torch.float64)
        full[d] = full[:, d] = self.totals
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
    known = all(own.expected is not None for own in moments)
    expected = torch.zeros_like(cross) if known else None
    values = moments[0].squares
    squares = None if values is None else torch.zeros(values.shape, dtype=torch.float64)
    for own, weight in zip(moments, weights, strict=True):
        factor = weight / own.examples
        # In float64; a copy of the whole in that dtype would cost more than the sum.
        for sums, more in zip(gram.split(_BLOCK), own.gram.split(_BLOCK), strict=True):
            sums.add_(more, alpha=factor)
        cross.add_(own.cross, alpha=factor)
        if expected is not None and own.expected is not None:
            expected.add_(own.expected, alpha=factor)
        if squares is not None and own.squares is not None:
            squares.add_(own.squares, alpha=factor)
    return HeadMoments(gram, cross, expected, squares)


def fault_of(moments: HeadMoments) -> str:
    """Why these can be no moments of any examples; empty if they can.

    They must be finite, with class counts from 0 up, a positive semidefinite ``square`` within
    rounding, and class sums within Cauchy and Schwarz: for each class c and input i,
    ``(sum y_c phi_i)^2 <= sum y_c sum phi_i^2``. What is expected of the classes is held to the
    same, and sums up to what the classes do. Of targets that are values the squares are given:
    ``(sum y_c phi_i)^2 <= sum y_c^2 sum phi_i^2``.
    """
    if not all(bool(torch.isfinite(t).all()) for t in moments.named().values()):
        return "they are not finite (NaN or infinity)"
    squares = _diagonal(moments)
    if bool((squares < 0).any()):
        return "they have negative squares"
    if fault := _fault_of_targets(moments, squares):
        return fault
    if not _semidefinite(moments, squares):
        return "they are not positive semidefinite"
    return ""


def _fault_of_targets(moments: HeadMoments, squares: Tensor) -> str:
    """Why sums by target fit no inputs of these squares."""
    if moments.squares is not None:
        return _fault_of_values(moments, moments.squares.to(torch.float64), squares)
    for sums in (moments.cross, moments.expected):
        if sums is not None and (fault := _fault_of_sums(sums.to(torch.float64), squares)):
            return fault
    if moments.expected is not None and not _same_totals(moments.cross, moments.expected, squares):
        return "what is expected of the classes does not sum up to what they have"
    return ""


def _fault_of_values(moments: HeadMoments, of_values: Tensor, squares: Tensor) -> str:
    """Why sums of values fit neither the values' squares nor those of the inputs."""
    if not moments.examples > 0:
        return "there are no examples"
    if bool((of_values < 0).any()):
        return "their targets have negative squares"
    of_inputs = torch.cat([squares, squares.new_tensor([moments.examples])])
    largest = (1 + _ROUNDING) * of_values[:, None] * of_inputs
    if bool((moments.targets.square() > largest + _tiny(largest.flatten())).any()):
        return "the sums of their targets are larger than their squares allow"
    return ""


def _fault_of_sums(sums: Tensor, squares: Tensor) -> str:
    """Why (C, d + 1) sums by class, with counts last, fit no inputs of these squares."""
    counts = sums[:, -1]
    if bool((counts < 0).any()) or not float(counts.sum()) > 0:
        return "their class counts are not from 0 up, or there are no examples"
    slack = 1 + _ROUNDING
    # Whether targets are hard or soft, y_c^2 <= y_c.
    largest = slack * counts[:, None] * squares + _tiny(squares)
    if bool((sums[:, :-1].square() > largest).any()):
        return "their class sums are larger than their squares allow"
    return ""


def _same_totals(cross: Tensor, expected: Tensor, squares: Tensor) -> bool:
    """Whether targets and probabilities sum to the same: both are 1 in all, for each example."""
    totals = (t.to(torch.float64).sum(0) for t in (cross, expected))
    difference = (next(totals) - next(totals)).abs()
    rows = float(cross[:, -1].sum())
    sizes = torch.cat([squares, squares.new_tensor([rows])]).mul(rows).sqrt()
    return bool((difference <= _SAME * sizes + _ROUNDING * float(sizes.max())).all())


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
    return _least_eigenvalue(moments, squares) > -_ROUGH


def _least_eigenvalue(moments: HeadMoments, squares: Tensor) -> float:
    """About the least eigenvalue of the inputs' squares at size 1; never less than it is.

    By some steps of Lanczos's method, in float32: a factorisation of each client's would take
    longer than solving the head.
    """
    d = moments.inputs
    upper = torch.zeros(d, d)
    rows = moments.gram.split(list(range(d, 0, -1)))
    for place, row in enumerate(rows):
        upper[place, place:] = row
    upper.diagonal().mul_(0.5)  # counted twice below
    sizes = squares.sqrt().clamp_min(1e-30).reciprocal().to(torch.float32)
    vector = torch.randn(d, generator=torch.Generator().manual_seed(0))
    basis = [vector / vector.norm()]
    middle, beside = [], []
    for _ in range(min(_STEPS, d)):
        scaled = sizes * basis[-1]
        image = sizes * (upper @ scaled + upper.T @ scaled)
        middle.append(float(image @ basis[-1]))
        for known in basis:  # all of them: rounding brings old ones back
            image = image - (image @ known) * known
        beside.append(float(image.norm()))
        if beside[-1] < 1e-6:
            break
        basis.append(image / image.norm())
    off = torch.tensor(beside[: len(middle) - 1], dtype=torch.float64)
    small = torch.tensor(middle, dtype=torch.float64).diag() + off.diag(1) + off.diag(-1)
    return float(torch.linalg.eigvalsh(small)[0])
