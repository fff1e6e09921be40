"""The singular vectors that a spectral norm keeps: those of the averaged weight, not averages.

A mean of unit vectors is none, and clients' vectors may differ by their sign. The norm divides by
``u^T W v``, which must be the averaged weight's largest singular value.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedma_flwr.structure import PermutationSpec
from fedma_flwr.structure.state_dict_names import spectral_norms

_STEPS, _TOLERANCE = 1000, 1e-9
_TINY = torch.finfo(torch.float64).tiny


def with_spectral_vectors(
    spec: PermutationSpec, settled: Mapping[str, Tensor], before: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Replace averaged singular vectors by those of the averaged weight.

    Parameters
    ----------
    spec : PermutationSpec
        The model's spec.
    settled : mapping of str to Tensor
        What settles in a stage.
    before : mapping of str to Tensor
        What settled earlier in the round: weights may be among it.

    Returns
    -------
    dict of str to Tensor
        The same names, shapes and dtypes.
    """
    result, known = dict(settled), {**before, **settled}
    for weight, left, right in spectral_norms(spec.axes):
        if not {left, right} <= settled.keys() or weight not in known:
            continue
        matrix = _matrix(spec, weight, left, known)
        if matrix is not None and matrix.shape == (len(known[left]), len(known[right])):
            u, v = _largest_pair(matrix, known[right].to(torch.float64))
            result[left], result[right] = u.to(known[left]), v.to(known[right])
    return result


def _matrix(
    spec: PermutationSpec, weight: str, left: str, known: Mapping[str, Tensor]
) -> Tensor | None:
    """The weight as a matrix whose rows belong to the left vector, as torch flattens it."""
    tensor = known[weight].to(torch.float64)
    fits = [d for d, size in enumerate(tensor.shape) if size == len(known[left])]
    # A transposed convolution with as many inputs as outputs has two such axes.
    same = [d for d in fits if spec.axes[weight][d] == spec.axes[left][0]]
    dims = same or fits
    return tensor.movedim(dims[0], 0).flatten(1) if dims and tensor.dim() > 1 else None


def _largest_pair(matrix: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors u, v of the largest singular value, by power iteration."""
    row = matrix[matrix.norm(dim=1).argmax()]
    # The largest row is not at right angles to them; the average keeps the sign.
    v = _unit(_unit(start) + torch.where(row @ start < 0, -1.0, 1.0) * _unit(row))
    u, size = _unit(matrix @ v), 0.0
    for _ in range(_STEPS):
        v = _unit(matrix.T @ u)
        image = matrix @ v
        u, last, size = _unit(image), size, float(image.norm())
        if size - last <= _TOLERANCE * size:
            break
    return u, v


def _unit(vector: Tensor) -> Tensor:
    """A vector of length 1; where there is none, the first axis."""
    length = float(vector.norm())
    if length > _TINY:
        return vector / length
    first = torch.zeros_like(vector)
    first[0] = 1.0
    return first
