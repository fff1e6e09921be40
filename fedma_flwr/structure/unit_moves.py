"""Tensors of a client from the units of one stage to those of another."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fedma_flwr.structure.spec import PermutationSpec, StateDict


def move_units(
    spec: PermutationSpec,
    tensors: StateDict,
    *,
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    widths: Mapping[str, int],
) -> dict[str, Tensor]:
    """Back to a client's own units, then to where they are now.

    Parameters
    ----------
    spec : PermutationSpec
        The model's spec.
    tensors : mapping of str to Tensor
        Some of its tensors, or others of the same shapes.
    before, after : mapping of str to Tensor
        For each group whose units are not the client's own there, (n,) the number of each of its
        own units.
    widths : mapping of str to int
        Width of every group in `after`.

    Returns
    -------
    dict of str to Tensor
        Zero (running variances: 1) at units that the client lacks.

    Raises
    ------
    SpecError
        If the tensors are not in the units that `before` tells of.
    """
    groups = {group for name in tensors for group in spec.tensor_groups(name)}
    own = spec.select(tensors, {group: u for group, u in before.items() if group in groups})
    places = {group: units for group, units in after.items() if group in groups}
    return spec.expand(own, places, widths)
