"""Which clients hold a unit, or a pair of units."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedma_flwr.structure import PermutationSpec


def holding_mask(
    spec: PermutationSpec,
    name: str,
    assignment: Mapping[str, Tensor],
    widths: Mapping[str, int],
) -> Tensor:
    """1 where a client holds the unit or the pair of units.

    Only groups in `assignment`, those matched in this stage, count: along groups matched earlier
    the client has trained every unit of the global width, its own or not.

    Parameters
    ----------
    spec : PermutationSpec
        The model's spec.
    name : str
        The tensor.
    assignment : mapping of str to Tensor
        The (n,) global unit of each of the client's units, by group.
    widths : mapping of str to int
        The global width of every group of the tensor.

    Returns
    -------
    Tensor
        Float64, of a shape that broadcasts to the tensor's.
    """
    axes = spec.axes[name]
    mask = torch.ones([1] * len(axes), dtype=torch.float64)
    for dim, axis in enumerate(axes):
        if axis.groups & assignment.keys():
            held = torch.zeros(axis.size(widths), dtype=torch.float64)
            held[axis.positions(assignment, widths)] = 1.0
            mask = mask * held.reshape([-1 if d == dim else 1 for d in range(len(axes))])
    return mask
