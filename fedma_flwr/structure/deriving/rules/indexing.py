"""Picking positions by number, and operators whose result depends on the order of positions."""

from __future__ import annotations

from typing import Any

from fedma_flwr.structure.deriving.atoms import Axes, Axis, fixed, size, split
from fedma_flwr.structure.deriving.reshaping import divide
from fedma_flwr.structure.deriving.rules.call import Call, Stack, broadcast, fixed_like, rule


@rule("select")
def select(call: Call) -> Axes:
    """One position of an axis: it stands apart from the others from now on."""
    value, index = call["self"], int(call["index"])
    if isinstance(value, Stack) and int(call["dim"]) == 0:
        return value.entries[index]
    x = call.axes("self")
    dim = call.dim("dim", len(x))
    index %= size(x[dim])
    split(x[dim], [index, 1, size(x[dim]) - index - 1])
    return (*x[:dim], *x[dim + 1 :])


@rule("unbind")
def unbind(call: Call) -> Any:
    """Every position of an axis by itself."""
    value = call["self"]
    if isinstance(value, Stack) and int(call["dim"]) == 0:
        return list(value.entries)
    x = call.axes("self")
    dim = call.dim("dim", len(x))
    call.pin(x[dim], "its positions are used one by one")
    return [(*x[:dim], *x[dim + 1 :])] * size(x[dim])


@rule("slice", "narrow")
def window(call: Call) -> Axes:
    """Consecutive positions of an axis, or every n-th of all."""
    x = list(call.axes("self"))
    dim = call.dim("dim", len(x))
    length, step = size(x[dim]), int(call.arguments.get("step") or 1)
    start = int(call["start"] or 0)
    start = min(max(start + length, 0) if start < 0 else start, length)
    x[dim] = _every(call, x[dim], start, step, call.shape[dim])
    return tuple(x)


def _every(call: Call, axis: Axis, start: int, step: int, count: int) -> Axis:
    length = size(axis)
    if step == 1:
        return axis if count == length else split(axis, [start, count, length - start - count])[1]
    if length % step == 0 and count == length // step:
        slow, fast = divide(axis, [count, step])
        split(fast, [start, 1, step - start - 1])
        return slow
    call.pin(axis, "every n-th of its positions is taken")
    return fixed(count)


@rule("index_select")
def index_select(call: Call) -> Any:
    """Positions of one axis are picked by number."""
    value, index = call["self"], call.axes("index")
    if isinstance(value, Stack) and int(call["dim"]) % (len(value.entries[0]) + 1):
        dim = int(call["dim"]) % (len(value.entries[0]) + 1) - 1
        return Stack(tuple(_selected(call, entry, dim, index) for entry in value.entries))
    x = call.axes("self")
    return _selected(call, x, call.dim("dim", len(x)), index)


def _selected(call: Call, x: Axes, dim: int, index: Axes) -> Axes:
    call.pin(x[dim], "its positions are picked by number")
    return (*x[:dim], *(index or (((),),)), *x[dim + 1 :])


@rule("index", "_unsafe_index")
def lookup(call: Call) -> Axes:
    """Positions are picked by number, or by a mask, so that they must stay where they are."""
    x = call.axes("self")
    picked = call.picked("indices", x)
    for dim in picked.dims:
        call.pin(x[dim], f"its positions are picked by {'a mask' if picked.masked else 'number'}")
    if not picked.masked:
        return picked.axes()
    for index in call.many("indices"):
        for axis in index:
            call.pin(axis, "it is a mask")
    count = len(call.shape) - len(picked.rest)
    return picked.axes(fixed_like(call.shape[picked.at : picked.at + count]))


@rule("cumsum", "cumprod", "logcumsumexp", "diff", "cumsum_", "cumprod_")
def running(call: Call) -> Axes:
    """Each position depends on those before it."""
    x = list(call.axes("self"))
    dim = call.dim("dim", len(x))
    call.pin(x[dim], "its positions are taken in order")
    x[dim] = fixed(call.shape[dim])
    return tuple(x)


_ORDER = """
masked_scatter masked_scatter_ slice_scatter select_scatter diagonal_scatter fill_diagonal_ put_
searchsorted bucketize stft affine_grid_generator bincount trapezoid histc
arange linspace logspace tril_indices triu_indices randint randperm randint_like hann_window
hamming_window bartlett_window blackman_window
"""
_ORDER_LISTS = "meshgrid cummax cummin where.default nonzero nonzero_numpy argwhere masked_select"
_SORTED = "sort topk median.dim mode kthvalue nanmedian.dim msort"


@rule(_ORDER)
def by_position(call: Call) -> Axes:
    """Every position has a meaning of its own: all arguments are pinned."""
    call.pin_all("its result depends on the order of positions")
    return fixed_like(call.shape)


@rule(_ORDER_LISTS)
def by_order(call: Call) -> Any:
    """As `by_position`, for operators that return several tensors."""
    call.pin_all("its result depends on the order of positions")
    value = call.node.meta["val"]
    if not isinstance(value, (list, tuple)):
        return fixed_like(value.shape)
    return [fixed_like(shape) for shape in call.shapes]


@rule(_SORTED)
def ranked(call: Call) -> Any:
    """Ranks along an axis take the place of its positions."""
    x = call.axes("self")
    dim = call.dim("dim", len(x)) if "dim" in call.arguments else 0
    call.pin(x[dim], "its positions are ranked")
    several = isinstance(call.node.meta["val"], (list, tuple))
    shape = call.shapes[0] if several else call.shape
    ranks = fixed_like(shape[dim : dim + 1]) if len(shape) == len(x) else ()
    result = (*x[:dim], *ranks, *x[dim + 1 :])
    return [result, result] if several else result


@rule("item is_nonzero _local_scalar_dense")
def number(_: Call) -> None:
    """A tensor of one element becomes a number of the code."""


@rule("equal allclose")
def compared(call: Call) -> None:
    """Two tensors are compared as a whole: the same if both are permuted alike."""
    broadcast(*call.all_axes())


@rule("unfold")
def windows(call: Call) -> Axes:
    """Overlapping windows of an axis; their positions are a new last one."""
    x = list(call.axes("self"))
    dim = call.dim("dimension", len(x))
    call.pin(x[dim], "it is cut into windows")
    x[dim] = fixed(call.shape[dim])
    return (*x, fixed(call.shape[-1]))


@rule("grid_sampler grid_sampler_2d grid_sampler_3d")
def sampled(call: Call) -> Axes:
    """``(N, C, *places)`` at the points of a grid ``(N, *points, coordinates)``."""
    x, grid = call.axes("input"), call.axes("grid")
    for axis in (*x[2:], *grid[1:]):
        call.pin(axis, "it is spatial")
    return (*broadcast(x[:1], grid[:1]), x[1], *fixed_like(call.shape[2:]))
