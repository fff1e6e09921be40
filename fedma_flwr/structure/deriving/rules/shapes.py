"""Reshapes, transpositions, repetition and padding."""

from __future__ import annotations

from fedma_flwr.structure.deriving.atoms import Axes, Axis, free, size, split, unify
from fedma_flwr.structure.deriving.reshaping import concat, divide, product, reshape
from fedma_flwr.structure.deriving.rules.call import Call, fixed_like, rule


@rule("view", "reshape", "flatten", "unflatten", "_unsafe_view", "view_as", "reshape_as", "ravel")
@rule("_reshape_alias", "_reshape_copy", "view_copy")
def any_reshape(call: Call) -> Axes:
    """The same elements in the same order, in another shape."""
    return reshape(call.all_axes()[0], call.shape)


@rule("squeeze")
def squeeze(call: Call) -> Axes:
    """Axes of size 1 go."""
    x = call.axes("self")
    dims = call.dims("dim", len(x)) if "dim" in call.arguments else range(len(x))
    return tuple(axis for i, axis in enumerate(x) if size(axis) != 1 or i not in dims)


@rule("unsqueeze")
def unsqueeze(call: Call) -> Axes:
    """A new axis of size 1."""
    x = call.axes("self")
    dim = call.dim("dim", len(x) + 1)
    return (*x[:dim], ((),), *x[dim:])


@rule("transpose", "swapaxes", "swapdims")
def transpose(call: Call) -> Axes:
    """Two axes change places."""
    x = list(call.axes("self"))
    one, other = (int(value) % len(x) for value in list(call.arguments.values())[1:3])
    x[one], x[other] = x[other], x[one]
    return tuple(x)


@rule("permute")
def permute(call: Call) -> Axes:
    """Axes in another order."""
    x = call.axes("self")
    return tuple(x[int(dim) % len(x)] for dim in call["dims"])


@rule("t", "numpy_T", "adjoint", "mT", "mH", "matrix_H")
def reverse(call: Call) -> Axes:
    """The last two axes change places; `numpy_T` reverses all."""
    x = call.axes("self")
    if "numpy_T" in str(call.node.target) or len(x) < 2:
        return x[::-1]
    return (*x[:-2], x[-1], x[-2])


@rule("movedim", "moveaxis")
def movedim(call: Call) -> Axes:
    """Some axes move to other places."""
    x = call.axes("self")
    sources, targets = call.dims("source", len(x)), call.dims("destination", len(x))
    rest = [axis for i, axis in enumerate(x) if i not in sources]
    for target, source in sorted(zip(targets, sources, strict=True)):
        rest.insert(target, x[source])
    return tuple(rest)


@rule("expand", "expand_as", "broadcast_to")
def expand(call: Call) -> Axes:
    """Entries are repeated along axes of size 1: there, no position is special."""
    x = call.all_axes()[0]
    padded = (((),),) * (len(call.shape) - len(x)) + x
    return tuple(
        axis if size(axis) == length else free(length)
        for axis, length in zip(padded, call.shape, strict=True)
    )


@rule("repeat", "tile")
def repeat(call: Call) -> Axes:
    """The whole tensor, several times along each axis."""
    x = call.axes("self")
    padded = (((),),) * (len(call.shape) - len(x)) + x
    return tuple(
        product([free(length // size(axis)), axis])
        for axis, length in zip(padded, call.shape, strict=True)
    )


@rule("repeat_interleave.self_int")
def repeat_interleave(call: Call) -> Axes:
    """Every position, several times."""
    x = list(call.axes("self"))
    if call["dim"] is None:
        x = [product(x)]
    dim = 0 if call["dim"] is None else call.dim("dim", len(x))
    x[dim] = product([x[dim], free(call.shape[dim] // size(x[dim]))])
    return tuple(x)


@rule("constant_pad_nd", "pad")
def pad(call: Call) -> Axes:
    """Constant positions before and after an axis; any other mode looks at neighbours."""
    x = list(call.axes("self"))
    amounts = list(call["pad"])
    for index in range(len(amounts) // 2):
        before, after = (int(amount) for amount in amounts[2 * index : 2 * index + 2])
        dim = len(x) - 1 - index
        if (before or after) and call.arguments.get("mode", "constant") != "constant":
            call.pin(x[dim], "it is padded with its own positions")
            x[dim] = fixed_like(call.shape)[dim]
        elif before or after:
            x[dim] = _padded(x[dim], before, after)
    return tuple(x)


def _padded(axis: Axis, before: int, after: int) -> Axis:
    cut = [max(-before, 0), size(axis) + min(before, 0) + min(after, 0), max(-after, 0)]
    kept = split(axis, cut)[1] if cut[0] or cut[2] else axis
    ends = [free(max(before, 0)), free(max(after, 0))]
    return concat([part for part in (ends[0], kept, ends[1]) if size(part)])


@rule("pixel_shuffle")
def pixel_shuffle(call: Call) -> Axes:
    """``(C * r * r, H, W)`` to ``(C, H * r, W * r)``."""
    *batch, channels, height, width = call.axes("self")
    times = int(call["upscale_factor"])
    out, rows, columns = divide(channels, [size(channels) // times**2, times, times])
    return (*batch, out, product([height, rows]), product([width, columns]))


@rule("pixel_unshuffle")
def pixel_unshuffle(call: Call) -> Axes:
    """``(C, H * r, W * r)`` to ``(C * r * r, H, W)``."""
    *batch, channels, height, width = call.axes("self")
    times = int(call["downscale_factor"])
    high, rows = divide(height, [size(height) // times, times])
    wide, columns = divide(width, [size(width) // times, times])
    return (*batch, product([channels, rows, columns]), high, wide)


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(call: Call) -> Axes:
    """``(g, C / g)`` channels become ``(C / g, g)``."""
    x = call.axes("self")
    groups = int(call["groups"])
    blocks, inner = divide(x[1], [groups, size(x[1]) // groups])
    return (x[0], product([inner, blocks]), *x[2:])


@rule("im2col")
def im2col(call: Call) -> Axes:
    """``(..., C, H, W)`` to ``(..., C * kernel, positions)``."""
    *batch, channels, height, width = call.axes("self")
    for axis in (height, width):
        call.pin(axis, "it is spatial")
    kernel, positions = fixed_like((call.shape[-2] // size(channels), call.shape[-1]))
    return (*batch, product([channels, kernel]), positions)


@rule("col2im")
def col2im(call: Call) -> Axes:
    """``(..., C * kernel, positions)`` to ``(..., C, H, W)``."""
    *batch, columns, positions = call.axes("self")
    channels = call.shape[-3]
    out, kernel = divide(columns, [channels, size(columns) // channels])
    for axis in (kernel, positions):
        call.pin(axis, "it is spatial")
    return (*batch, out, *fixed_like(call.shape[-2:]))


@rule("roll", "flip", "rot90", "fliplr", "flipud")
def move(call: Call) -> Axes:
    """Positions move along some axes, which are pinned unless they have one position."""
    x = list(call.axes("self"))
    dims = call.dims("dims", len(x)) if "dims" in call.arguments else list(range(len(x)))
    for dim in dims:
        call.pin(x[dim], "its positions are moved")
        x[dim] = fixed_like(call.shape)[dim]
    return tuple(x)


@rule("tril", "triu", "tril_", "triu_")
def triangle(call: Call) -> Axes:
    """Positions are compared along the last two axes."""
    x = call.axes("self")
    for axis in x[-2:]:
        call.pin(axis, "a triangle is cut out")
    return x


@rule("chunk", "split", "split_with_sizes", "tensor_split", "hsplit", "unsafe_split")
@rule("unsafe_chunk", "unsafe_split_with_sizes")
def parts(call: Call) -> list[Axes]:
    """Consecutive parts of an axis."""
    x = call.axes("self")
    dim = call.dim("dim", len(x)) if "dim" in call.arguments else min(1, len(x) - 1)
    pieces = split(x[dim], [shape[dim] for shape in call.shapes])
    return [(*x[:dim], piece, *x[dim + 1 :]) for piece in pieces]


@rule("linalg_cross", "cross")
def cross(call: Call) -> Axes:
    """Vectors of three components along one axis, which is pinned."""
    one, other = call.all_axes()
    for left, right in zip(one, other, strict=True):
        unify(left, right)
    call.pin_all("a cross product")
    return one
