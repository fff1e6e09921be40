"""Writing to positions that are given by number: only the axis that they count is pinned."""

from __future__ import annotations

from collections.abc import Sequence

from fedma_flwr.structure.deriving.atoms import Axes, size, unify
from fedma_flwr.structure.deriving.rules.call import Call, broadcast, rule

_NUMBERED = "its positions are written by number"


def _aligned(call: Call, x: Axes, parts: Sequence[Axes | None], dim: int) -> None:
    """Unite the axes of what is written with those it is written to, all but one; they may be cut.

    Where a part is shorter, it stands at the first positions, which are then special.
    """
    for own in parts:
        for other, (one, theirs) in enumerate(zip(x, own or (), strict=False)):
            if other == dim:
                continue
            if size(one) == size(theirs):
                unify(one, theirs)
            else:
                call.pin(one, "only its first positions are used")
                call.pin(theirs, "it meets the first positions of another axis")


@rule("scatter scatter_ scatter_add scatter_add_ scatter_reduce scatter_reduce_")
def scatter(call: Call) -> Axes:
    """``x[index[i, j], j] = src[i, j]``: the order in which sums are taken does not matter."""
    x, index, source = call.axes("self"), call.axes("index"), call.optional_axes("src")
    dim = call.dim("dim", len(x))
    _aligned(call, x, [index, source], dim)
    for axis in x[dim : dim + 1]:
        call.pin(axis, _NUMBERED)
    for own in filter(None, (index, source)):
        if "add" not in call.name or size(own[dim]) != size(index[dim]):
            call.pin(own[dim], "its positions overwrite one another")
    if source and size(source[dim]) == size(index[dim]):
        unify(source[dim], index[dim])
    return x


@rule("gather", "take_along_dim")
def gather(call: Call) -> Axes:
    """``y[i, j] = x[index[i, j], j]``."""
    x, index = call.axes("self"), call.axes("indices" if "along" in call.name else "index")
    if call["dim"] is None:
        call.pin_all("its positions are picked by number")
        return index
    dim = call.dim("dim", len(x))
    call.pin(x[dim], "its positions are picked by number")
    if "along" in call.name:
        others = broadcast(*((*own[:dim], ((),), *own[dim + 1 :]) for own in (x, index)))
        return (*others[:dim], index[dim], *others[dim + 1 :])
    _aligned(call, x, [index], dim)
    return index


@rule("index_add index_add_ index_copy index_copy_ index_reduce index_reduce_")
def index_add(call: Call) -> Axes:
    """``x[index[i], j] += source[i, j]``."""
    x, index, source = call.axes("self"), call.axes("index"), call.axes("source")
    dim = call.dim("dim", len(x))
    call.pin(x[dim], _NUMBERED)
    _aligned(call, x, [source], dim)
    if index:
        unify(source[dim], index[0])
    if "add" not in call.name:
        call.pin(source[dim], "its positions overwrite one another")
    return x


@rule("index_fill index_fill_")
def index_fill(call: Call) -> Axes:
    """Some positions get one value."""
    x = call.axes("self")
    call.pin(x[call.dim("dim", len(x))], _NUMBERED)
    return x


@rule("index_put index_put_ _unsafe_index_put")
def index_put(call: Call) -> Axes:
    """``x[rows, columns] = values``."""
    x, values = call.axes("self"), call.axes("values")
    picked = call.picked("indices", x)
    for dim in picked.dims:
        call.pin(x[dim], _NUMBERED)
    if picked.masked or not call["accumulate"]:
        for axis in picked.numbers:
            call.pin(axis, "its positions overwrite one another")
    if picked.masked:  # how many positions there are is not known
        after = x[picked.dims[-1] + 1 :] if picked.at else picked.rest
        for axis in values[: max(len(values) - len(after), 0)]:
            call.pin(axis, _NUMBERED)
        broadcast(values[max(len(values) - len(after), 0) :], after[-len(values) :])
    else:
        broadcast(picked.axes(), values)
    return x
