"""Signatures: the rows that describe a group's units when it is matched.

Row ``i`` of a signature holds everything that makes unit ``i`` what it is: its incoming weights,
its biases and its norm parameters, over all tensors whose output axis carries the group.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from fedma_flwr.structure.axes import AxisExpression
from fedma_flwr.structure.nested_units import sorted_rows
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
    *,
    unmatched: Collection[str] = (),
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
    unmatched : collection of str, optional
        Groups whose units have another order at each client. Where they share an axis with the
        group (heads x units), rows do not depend on it: see `sorted_rows`.

    Returns
    -------
    Tensor
        (L, D): one row a unit; a tensor with several terms (the gates of an LSTM) contributes one
        block of columns a term.
    """
    tensors = {name: state_dict[name] for name in names}
    widths = {**spec.sizes, **(known or {}), **spec.widths(tensors, known)}
    rows: list[Tensor] = []
    nested: dict[tuple[str, ...], list[Tensor]] = {}  # by what the units hold
    for name in names:
        axis = spec.axes[name][spec.output_axis(name)]
        terms = [term for term in axis.terms if group in term]
        blocks = _unit_blocks(spec, name, group, state_dict[name], widths)
        for term, block in zip(terms, blocks, strict=True):
            inner = _inner_groups(term, group, unmatched)
            if inner:
                nested.setdefault(inner, []).append(_inner_first(block, term, group, inner, widths))
            else:
                rows.append(_as_rows(block))
    for inner, found in nested.items():
        rows.append(sorted_rows(found, math.prod(spec.sizes[own] for own in inner)))
    return torch.cat(rows, dim=1)


def is_nested(spec: PermutationSpec, group: str, unmatched: Collection[str]) -> bool:
    """Whether units of a group hold units of others, whose order differs between clients.

    Its signature then says what they hold, and cannot be written back into tensors.
    """
    axes = (spec.axes[n][spec.output_axis(n)] for n in spec.axes if group in spec.output_groups(n))
    return any(_inner_groups(term, group, unmatched) for axis in axes for term in axis.terms)


def _inner_groups(
    term: tuple[int | str, ...], group: str, unmatched: Collection[str]
) -> tuple[str, ...]:
    if group not in term:
        return ()
    return tuple(own for own in term if isinstance(own, str) and own != group and own in unmatched)


def _inner_first(
    block: Tensor,
    term: tuple[int | str, ...],
    group: str,
    inner: tuple[str, ...],
    widths: Mapping[str, int],
) -> Tensor:
    """(units, inner units, rest...) of a block (units, before, after, rest...) of a term."""
    others = [factor for factor in term if factor != group]
    sizes = [widths[own] if isinstance(own, str) else own for own in others]
    block = block.reshape(len(block), *sizes, -1)
    places = [1 + at for at, own in enumerate(others) if own in inner]
    block = block.movedim(places, list(range(1, 1 + len(places))))
    return block.flatten(1, len(places))


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


__all__ = ["is_nested", "set_signature", "signature", "signature_tensors"]
