"""The head in closed form: ridge regression of targets on inputs, from their moments alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedma_flwr.averaging.head_moments import HeadMoments

#: Regularisers that are tried, relative to the inputs' mean square, and where the search begins.
GRID = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
FIRST = 6
#: Of the examples: with fewer left over by the fit, its error says nothing.
_LEFT_OVER = 1e-3
_INVERTED = 1024  # up to so many inputs a system is inverted exactly
_PROBES = 64


def solve_head(
    moments: HeadMoments,
    *,
    bias: bool,
    regularisation: float | None = None,
    positions: float = 1.0,
) -> tuple[Tensor, Tensor | None]:
    """Ridge regression of the targets on the inputs: the head in closed form.

    ``B (A + regularisation * tr(A) / d I)^-1`` with ``A = sum phi phi^T`` and
    ``B = sum y phi^T``; a bias is an input that is always 1 and is not regularised. What is
    computed depends on the sums alone, however the examples are split (Fanì et al., "FED3R", ICML
    2024; He et al., "AFL", CVPR 2025).

    Parameters
    ----------
    moments : HeadMoments
        Of all clients.
    bias : bool
        Whether the head has a bias.
    regularisation : float, optional
        Relative to the inputs' mean square. None: chosen by `choose_regularisation`.
    positions : float (default: 1.0)
        Rows that an example has, where the head is applied along a sequence or at each pixel.

    Returns
    -------
    weight : Tensor
        (C, d), float64. Rows of classes without examples are 0.
    bias : Tensor or None
        (C,), float64.

    Raises
    ------
    ValueError
        If no head can be solved from the moments.
    """
    d = moments.inputs
    square, cross = _system(moments, bias)
    if regularisation is None:
        regularisation = choose_regularisation(moments, bias=bias, positions=positions)
    return _solve(square, cross, d, regularisation)


def newton_step(
    moments: HeadMoments, *, bias: bool, regularisation: float
) -> tuple[Tensor, Tensor | None]:
    """The step from the reference head to a better one, for a cross-entropy.

    ``sum (y - p) phi^T (A + regularisation * tr(A) / d I)^-1``: Newton's step with Böhning's bound
    on the curvature (Annals of the Institute of Statistical Mathematics 44, 1992), up to its
    length. From a head of zeros it is `solve_head`, less the mean.

    Parameters
    ----------
    moments : HeadMoments
        Of all clients, with what the reference head expects.
    bias : bool
        Whether the head has a bias.
    regularisation : float
        See `solve_head`.

    Returns
    -------
    weight, bias
        As those of `solve_head`.
    """
    if moments.expected is None:
        raise ValueError("moments: a step needs what the reference head expects")
    square, cross = _system(moments, bias)
    residual = cross - moments.expected.to(torch.float64)[:, : cross.shape[1]]
    return _solve(square, residual, moments.inputs, regularisation)


def best_scale(moments: HeadMoments, reference: Tensor) -> float:
    """What a reference head must be multiplied by for the least cross-entropy, about.

    The cross-entropy's slope along the scale is known at 0 and at 1; the secant's root lies near
    the minimum. Below 0 if smaller outputs would be better than none.

    Parameters
    ----------
    moments : HeadMoments
        With what the reference head expects.
    reference : Tensor
        (C, d) weight, or (C, d + 1) with the bias, float64.
    """
    if moments.expected is None:
        raise ValueError("moments: the scale follows from what the reference head expects")
    width = reference.shape[1]
    cross, expected = (t.to(torch.float64)[:, :width] for t in (moments.cross, moments.expected))
    at_zero = float(((cross - cross.mean(0)) * reference).sum())
    bend = float(((expected - cross.mean(0)) * reference).sum())
    return at_zero / bend if bend > 0 else 1.0


def unexplained_share(moments: HeadMoments, weight: Tensor, bias: Tensor | None) -> float:
    """The share of the targets' variance that a solved head leaves, 0 to 1.

    How well the inputs tell the classes apart, whatever the head's scale. 1 if all examples are of
    one class.

    Parameters
    ----------
    moments : HeadMoments
        Of all clients.
    weight, bias : Tensor and Tensor or None
        (C, d) and (C,), what `solve_head` gives.
    """
    square, cross = _system(moments, bias is not None)
    solved = weight if bias is None else torch.cat([weight, bias[:, None]], 1)
    squares, counts = moments.target_square, moments.targets[:, -1]
    left = squares + float(((solved @ square - 2 * cross) * solved).sum())
    total = squares - float(counts.square().sum()) / max(moments.examples, 1e-30)
    return min(max(left / total, 0.0), 1.0) if total > 0 else 1.0


def left_by(moments: HeadMoments, weight: Tensor, bias: Tensor | None) -> float:
    """The share of the targets' squares that a head's outputs leave, on the scale that suits them.

    Outputs and targets are taken less their mean over the classes, which decides nothing. A head
    may be of any size, so that one that was solved and one that was trained can be compared.

    Parameters
    ----------
    moments : HeadMoments
        Of all clients.
    weight, bias : Tensor and Tensor or None
        (C, d) and (C,), of any head.
    """
    square, cross = _system(moments, bias is not None)
    head = weight if bias is None else torch.cat([weight, bias[:, None]], 1)
    head = (head - head.mean(0)).to(torch.float64)
    fits = float(((cross - cross.mean(0)) * head).sum())
    size = float(((head @ square) * head).sum())
    total = moments.examples * (1 - 1 / len(cross))
    return 1 - max(fits, 0.0) ** 2 / (size * total) if size * total > 0 else 1.0


def whitened(moments: HeadMoments, rows: Tensor, regularisation: float = 0.01) -> Tensor:
    """Rows of head inputs, so that distances are those of the metric in which heads are solved.

    Parameters
    ----------
    moments : HeadMoments
        Of all clients.
    rows : Tensor
        (n, d), float64.
    regularisation : float (default: 0.01)
        See `solve_head`.

    Returns
    -------
    Tensor
        (n, d): ``|x - y|^2`` is ``(x - y)^T (A + regularisation * tr(A) / d I)^-1 (x - y)`` of the
        rows before.

    Raises
    ------
    ValueError
        As `solve_head` does.
    """
    square, _ = _system(moments, bias=False)
    factor = _solvable(square, moments.inputs, regularisation)
    solved: Tensor = torch.linalg.solve_triangular(factor, rows.T, upper=False)
    return solved.T


def choose_regularisation(moments: HeadMoments, *, bias: bool, positions: float = 1.0) -> float:
    """The regulariser of `GRID` with the least error by generalised cross-validation.

    That is ``RSS / (1 - p / n)^2`` with the fit's ``p`` effective parameters: what leaving out one
    example at a time gives on average (Golub, Heath and Wahba, Technometrics 1979). It needs the
    sums over all clients only; leaving out one client at a time chose nearly the same values on
    digits and on text, but needs every client's moments by themselves. The search walks downhill,
    so that few systems are solved where d is large.

    Parameters
    ----------
    moments : HeadMoments
        Of all clients, with as many examples as they have.
    bias : bool
        Whether the head has a bias.
    positions : float (default: 1.0)
        Rows that an example has.

    Returns
    -------
    float
        See `solve_head`.
    """
    d = moments.inputs
    square, cross = _system(moments, bias)
    step = _mean_square(square, d)
    errors: dict[int, float] = {}

    def error(place: int) -> float:
        if not 0 <= place < len(GRID):
            return math.inf
        if place not in errors:
            errors[place] = _error(
                square,
                cross,
                GRID[place] * step,
                (d, moments.examples * positions, moments.target_square),
            )
        return errors[place]

    best = FIRST
    for way in (-1, 1):
        while error(best + way) < error(best):
            best += way
    return GRID[best]


def _error(
    square: Tensor, cross: Tensor, strength: float, sizes: tuple[int, float, float]
) -> float:
    """What generalised cross-validation expects, up to a factor that is the same for all."""
    d, rows, squares = sizes
    factor = _factor(square, d, strength)
    if factor is None:
        return math.inf
    solved = torch.cholesky_solve(cross.T, factor).T
    parameters = len(square) - strength * _inverse_trace(factor, d)
    left_over = 1 - parameters / rows
    if left_over <= _LEFT_OVER:
        return math.inf
    residual = squares + float(((solved @ square - 2 * cross) * solved).sum())
    return residual / left_over**2


def _inverse_trace(factor: Tensor, d: int) -> float:
    """The sum of the first d diagonal entries of a system's inverse, from its factor.

    Of large systems it is estimated (Hutchinson, 1990): inverting takes longer than factorising.
    """
    if d <= _INVERTED:
        return float(torch.cholesky_inverse(factor).diagonal()[:d].sum())
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(2, (len(factor), _PROBES), generator=generator).to(factor) * 2 - 1
    signs[d:] = 0
    return float((signs * torch.cholesky_solve(signs, factor)).sum()) / _PROBES


def _system(moments: HeadMoments, bias: bool) -> tuple[Tensor, Tensor]:
    """``A`` and ``B`` with the bias's 1 among the inputs, or without it."""
    d = moments.inputs + int(bias)
    return moments.square()[:d, :d], moments.targets[:, :d]


def _mean_square(square: Tensor, d: int) -> float:
    return max(float(square.diagonal()[:d].mean()) if d else 0.0, 1e-30)


def _solve(
    square: Tensor, cross: Tensor, d: int, regularisation: float
) -> tuple[Tensor, Tensor | None]:
    """Weight and bias; None if the system has no input that is always 1."""
    solved = torch.cholesky_solve(cross.T, _solvable(square, d, regularisation)).T
    return solved[:, :d], solved[:, d] if len(square) > d else None


def _solvable(square: Tensor, d: int, strength: float) -> Tensor:
    """The factor of the regularised system, with more than was asked for if it is singular."""
    step = _mean_square(square, d)
    # Dead units and few examples leave nothing but the regulariser.
    while (factor := _factor(square, d, strength * step)) is None:
        strength = max(strength * 10, 1e-12)
        if not math.isfinite(strength * step):
            raise ValueError("moments: no head can be solved from them")
    return factor


def _factor(square: Tensor, d: int, strength: float) -> Tensor | None:
    """The Cholesky factor of the regularised system; None if it is singular."""
    regular = square.clone()
    regular.diagonal()[:d].add_(strength)
    factor, info = torch.linalg.cholesky_ex(regular)
    return None if int(info) else factor
