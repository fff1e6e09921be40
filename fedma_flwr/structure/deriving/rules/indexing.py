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


@rule("index_select", "index", "take_along_dim", "gather", "_unsafe_index")
def lookup(call: Call) -> Axes:
    """Positions are picked by number, so that they must stay where they are."""
    name = str(call.node.target).split(".")[1]
    if name not in ("index", "_unsafe_index"):
        call.pin_all("its positions are picked by number")
        return fixed_like(call.shape)
    x, indices = call.axes("self"), call["indices"]
    picked = [dim for dim, index in enumerate(indices) if index is not None]
    for dim in picked:
        call.pin(x[dim], "its positions are picked by number")
    numbers = broadcast(*[indices[dim] for dim in picked])
    rest = [axis for dim, axis in enumerate(x) if dim not in picked]
    adjacent = picked == list(range(picked[0], picked[-1] + 1))
    at = picked[0] if adjacent else 0
    result = (*rest[:at], *numbers, *rest[at:])
    if tuple(size(axis) for axis in result) == call.shape:
        return result
    call.pin_all("its positions are picked by a mask")
    return fixed_like(call.shape)


@rule("cumsum", "cumprod", "logcumsumexp", "diff", "cumsum_", "cumprod_")
def running(call: Call) -> Axes:
    """Each position depends on those before it."""
    x = list(call.axes("self"))
    dim = call.dim("dim", len(x))
    call.pin(x[dim], "its positions are taken in order")
    x[dim] = fixed(call.shape[dim])
    return tuple(x)


_SCATTER = """
scatter scatter_ scatter_add scatter_add_ scatter_reduce scatter_reduce_ index_add index_add_
index_copy index_copy_ index_fill index_fill_ index_put index_put_ masked_scatter masked_scatter_
slice_scatter select_scatter diagonal_scatter fill_diagonal_ put_ uniform_ normal_
"""
_ORDER = """
searchsorted bucketize fft_fft fft_rfft fft_ifft fft_irfft fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2
fft_fftn fft_ifftn stft grid_sampler affine_grid_generator bincount trapezoid
"""
_ORDER_LISTS = "meshgrid sort topk median.dim mode kthvalue cummax cummin nanmedian.dim msort"
_POSITIONS = """
arange linspace logspace eye tril_indices triu_indices rand randn randint randperm rand_like
randn_like randint_like normal hann_window hamming_window bartlett_window blackman_window
"""


@rule(_SCATTER, _ORDER, _POSITIONS)
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
