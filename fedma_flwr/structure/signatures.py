"""Signatures: the rows that describe a group's units when it is matched.

Row ``i`` of a signature holds everything that makes unit ``i`` what it is: its incoming weights,
its biases and its norm parameters, over all tensors whose output axis carries the group.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from fedma_flwr.structure.axes import AxisExpression
from fedma_flwr.structure.spec import PermutationSpec, StateDict


def signature_tensors(
    spec: PermutationSpec, group: str, matched: frozenset[str]
) -> tuple[str, ...]:
    """Tensors that make up the signature of a group.

    Parameters
    ----------
    spec : PermutationSpec
        The model's spec.
    group : str
        The group to match.
    matched : frozenset of str
        Groups matched before this one. A tensor whose inputs are not matched yet (the recurrent
        weights of the group itself among them) cannot be compared across clients.

    Returns
    -------
    tuple of str
        Tensor names in the spec's order.
    """
    return tuple(
        name
        for name in spec.axes
        if group in spec.output_groups(name)
        and name not in spec.statistics
        and spec.input_groups(name) <= matched
    )


def signature(
    spec: PermutationSpec,
    group: str,
    names: Sequence[str],
    state_dict: StateDict,
    known: Mapping[str, int] | None = None,
) -> Tensor:
    """The signature rows of a group.

    Parameters
    ----------
    spec : PermutationSpec
        The model's spec.
    group : str
        The group to match.
    names : sequence of str
        What `signature_tensors` returned.
    state_dict : mapping of str to Tensor
        One client's tensors, their input axes at the global widths.
    known : mapping of str to int, optional
        Widths that these tensors may not tell: of two groups that share an axis.

    Returns
    -------
    Tensor
        (L, D): one row a unit; a tensor with several terms (the gates of an LSTM) contributes one
        block of columns a term.
    """
    tensors = {name: state_dict[name] for name in names}
    widths = {**spec.sizes, **(known or {}), **spec.widths(tensors, known)}
    blocks = [
        rows for name in names for rows in _unit_blocks(spec, name, group, state_dict[name], widths)
    ]
    return torch.cat([_as_rows(block) for block in blocks], dim=1)


def set_signature(
    spec: PermutationSpec,
    group: str,
    names: Sequence[str],
    state_dict: dict[str, Tensor],
    rows: Tensor,
    *,
    known: Mapping[str, int] | None = None,
) -> None:
    """Write signature rows back into the tensors they came from, in place.

    Parameters
    ----------
    spec : PermutationSpec
        The model's spec.
    group : str
        The matched group.
    names : sequence of str
        What `signature_tensors` returned.
    state_dict : dict of str to Tensor
        The tensors to write to, with as many units as there are rows.
    rows : Tensor
        (L, D) as `signature` lays them out.
    known : mapping of str to int, optional
        As for `signature`.
    """
    tensors = {name: state_dict[name] for name in names}
    widths = {**spec.sizes, **(known or {}), **spec.widths(tensors, known)}
    start = 0
    for name in names:
        for block in _unit_blocks(spec, name, group, state_dict[name], widths):
            columns = block.numel() // len(block)
            part = rows[:, start : start + columns].reshape(block.shape)
            block.copy_(part.to(block.dtype))
            start += columns


def _as_rows(block: Tensor) -> Tensor:
    return block.reshape(len(block), -1)


def _unit_blocks(
    spec: PermutationSpec, name: str, group: str, tensor: Tensor, widths: Mapping[str, int]
) -> Iterator[Tensor]:
    """Views (units, before, after, rest...) of a tensor, one for each term that has the group."""
    dim = spec.output_axis(name)
    axis = spec.axes[name][dim]
    moved = tensor.movedim(dim, 0)  # (axis, rest...)
    offset = 0
    for term in axis.terms:
        sizes = [AxisExpression(((factor,),)).size(widths) for factor in term]
        length = math.prod(sizes)
        if group in term:
            at = term.index(group)
            before, after = math.prod(sizes[:at]), math.prod(sizes[at + 1 :])
            part = moved[offset : offset + length]
            part = part.unflatten(0, (before, sizes[at], after))  # (before, units, after, rest...)
            yield part.movedim(1, 0)
        offset += length


__all__ = ["set_signature", "signature", "signature_tensors"]
