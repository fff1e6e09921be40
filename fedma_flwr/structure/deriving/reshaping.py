"""Reshapes of axes: concatenate, flatten, divide."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedma_flwr.structure.deriving.atoms import (
    MAX_TERMS,
    Atom,
    Axes,
    Axis,
    SizeMismatchError,
    all_pinned,
    expand,
    fixed,
    pin,
    refine_product,
    size,
    split,
    term_size,
    unify,
)


def concat(axes: Sequence[Axis]) -> Axis:
    """The concatenation of axes."""
    return tuple(term for axis in axes for term in axis)


def product(axes: Sequence[Axis]) -> Axis:
    """The product of axes, slowest-varying first: what ``flatten`` makes of them."""
    whole: list[Atom] = []
    for axis in axes:
        if len(axis) == 1:
            whole += axis[0]
        else:
            atom = Atom(size(axis))
            atom.axis = axis
            whole.append(atom)
    return (tuple(whole),)


def divide(axis: Axis, sizes: Sequence[int]) -> list[Axis]:
    """Read an axis as a product of axes of the given sizes: what ``unflatten`` makes of it.

    Parameters
    ----------
    axis : Axis
        The axis to divide.
    sizes : sequence of int
        Sizes of the parts, slowest-varying first; their product is the size of the axis.
    """
    rest, parts = axis, []
    for length in reversed(sizes[1:]):
        rest, part = _peel(rest, length)
        parts.append(part)
    return [rest, *reversed(parts)] if sizes else []


def _peel(axis: Axis, length: int) -> tuple[Axis, Axis]:
    """Divide an axis into a slow and a fast part, the fast one of the given length."""
    axis = expand(axis)
    count = size(axis) // length
    if length == 1 or count == 1:
        return (axis, ((),)) if length == 1 else (((),), axis)
    if all_pinned(axis):
        return fixed(count), fixed(length)
    if len(axis) == 1:
        return _peel_term(axis, length)
    if all(term_size(term) % length == 0 for term in axis):
        pairs = [_peel((term,), length) for term in axis]
        for _, part in pairs[1:]:
            unify(pairs[0][1], part)
        return concat([rest for rest, _ in pairs]), pairs[0][1]
    if count > MAX_TERMS:
        pin(axis, "it is divided across a concatenation")
        return fixed(count), fixed(length)
    chunks = split(axis, [length] * count)
    for chunk in chunks[1:]:
        unify(chunks[0], chunk)
    return fixed(count), chunks[0]


def _peel_term(axis: Axis, length: int) -> tuple[Axis, Axis]:
    term, taken = axis[0], 1
    for index in range(len(term) - 1, -1, -1):
        atom = term[index]
        if length % (taken * atom.size) == 0:
            taken *= atom.size
            if taken == length:
                return (term[:index],), (term[index:],)
        elif length % taken == 0 and atom.size % (length // taken) == 0:
            fast = length // taken
            refine_product(atom, atom.size // fast, fast)
            return _peel(axis, length)
        else:
            break
    reason = "a reshape does not divide its units"
    pin(axis, reason)
    return fixed(size(axis) // length, reason), fixed(length, reason)


def reshape(axes: Axes, shape: Sequence[int]) -> Axes:
    """The axes after ``reshape``: the smallest blocks of equal size are flattened and divided.

    Parameters
    ----------
    axes : Axes
        The axes before.
    shape : sequence of int
        The shape after, with the same number of elements.
    """
    if math.prod(shape) == 0:
        return tuple(fixed(length) for length in shape)
    pending = [axis for axis in axes if size(axis) != 1]
    result: list[Axis] = []
    targets: list[int] = []
    for length in shape:
        targets.append(length)
        block = _matching_block(pending, math.prod(targets))
        if block is None:
            continue
        whole = pending[0] if block == 1 else product(pending[:block])
        result += divide(whole, targets) if block else [((),)] * len(targets)
        pending, targets = pending[block:], []
    if pending or targets:
        raise SizeMismatchError(f"a reshape to {tuple(shape)}")
    return tuple(result)


def _matching_block(pending: Sequence[Axis], elements: int) -> int | None:
    """How many of the first axes have that many elements together; None if no number has."""
    total = 1
    for count, axis in enumerate([*pending, None]):
        if total == elements:
            return count
        if axis is None or total > elements:
            return None
        total *= size(axis)
    return None
