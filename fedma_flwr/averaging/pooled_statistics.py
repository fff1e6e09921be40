"""Running statistics of several clients, pooled: the mean and variance of all their examples.

Variances cannot be averaged: what the clients' means differ by belongs to the variance of all.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedma_flwr.structure import PermutationSpec


def to_poolable(spec: PermutationSpec, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors with means of squares in place of running variances, ready to be averaged.

    Parameters
    ----------
    spec : PermutationSpec
        The model's spec.
    tensors : mapping of str to Tensor
        What one client has sent.

    Returns
    -------
    dict of str to Tensor
        Running means and means of squares in float64; all else as it was.
    """
    result = dict(tensors)
    for variance, mean in _pairs(spec, tensors):
        result[mean] = tensors[mean].to(torch.float64)
        result[variance] = tensors[variance].to(torch.float64) + result[mean] ** 2
    return result


def from_pooled(
    spec: PermutationSpec, tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Undo `to_poolable`: by the law of total variance, averages become pooled variances.

    Parameters
    ----------
    spec : PermutationSpec
        The model's spec.
    tensors : mapping of str to Tensor
        Averages of what `to_poolable` gave.
    like : mapping of str to Tensor
        Tensors with the dtypes that the result shall have.

    Returns
    -------
    dict of str to Tensor
        With finite statistics and variances from 0 up: the statistics of all examples together.
    """
    result = dict(tensors)
    for variance, mean in _pairs(spec, tensors):
        dtype = like[variance].dtype
        pooled = tensors[variance] - tensors[mean] ** 2
        # A mean near the dtype's limit must not make an infinite variance.
        result[variance] = pooled.clamp(0.0, torch.finfo(dtype).max).to(dtype)
        result[mean] = tensors[mean].to(like[mean].dtype)
    return result


def _pairs(spec: PermutationSpec, tensors: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Running variances and their means, as far as both are among the tensors."""
    return [(v, m) for v, m in spec.variances.items() if v in tensors and m in tensors]
