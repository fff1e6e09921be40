"""Reductions and pooling."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from fedma_flwr.structure.deriving.atoms import Axes, pin
from fedma_flwr.structure.deriving.rules.call import Call, broadcast, fixed_like, rule

_SYMMETRIC = """
sum mean amax amin prod logsumexp norm linalg_norm linalg_matrix_norm linalg_vector_norm
frobenius_norm nansum nanmean var std all any count_nonzero max min max.dim min.dim max.default
min.default sum.dim_IntList
"""


def _dims(call: Call, rank: int) -> list[int]:
    return call.dims("dim", rank) if "dim" in call.arguments else list(range(rank))


def _reduced(call: Call, x: Axes, dims: Sequence[int]) -> Axes:
    keep = bool(call.arguments.get("keepdim"))
    return tuple(
        ((),) if dim in dims else axis for dim, axis in enumerate(x) if keep or dim not in dims
    )


@rule(_SYMMETRIC)
def reduce(call: Call) -> Any:
    """Symmetric in what is reduced; the position of a maximum is not."""
    x = call.all_axes()[0]
    dims = _dims(call, len(x))
    result = _reduced(call, x, dims)
    if not isinstance(call.node.meta["val"], (list, tuple)):
        return result
    if call.uses(1):
        _pin(call, x, dims)
    return [result, result]


@rule("var_mean", "std_mean", "aminmax")
def reduce_twice(call: Call) -> list[Axes]:
    """Two symmetric reductions at once."""
    x = call.all_axes()[0]
    result = _reduced(call, x, _dims(call, len(x)))
    return [result, result]


@rule("argmax", "argmin")
def position(call: Call) -> Axes:
    """The position of a maximum: positions must stay where they are."""
    x = call.axes("self")
    dims = _dims(call, len(x)) if call["dim"] is not None else list(range(len(x)))
    _pin(call, x, dims)
    return _reduced(call, x, dims)


@rule("_is_all_true", "_is_any_true")
def checked(_: Call) -> Axes:
    """Whether all entries are true, or any is."""
    return ()


def _pin(call: Call, x: Axes, dims: Sequence[int]) -> None:
    for dim in dims:
        call.pin(x[dim], "the position of a maximum is used")


_KINDS = ("max_pool", "avg_pool", "lp_pool", "adaptive_max_pool", "adaptive_avg_pool")
_POOLS = [f"{kind}{n}d" for kind in _KINDS for n in (1, 2, 3)]
_WITH_POSITIONS = [f"max_pool{n}d_with_indices" for n in (1, 2, 3)]
_RESIZES = """
upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d
_upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d
upsample_trilinear3d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa
reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
replication_pad3d
"""


@rule(*_POOLS, *_WITH_POSITIONS, _RESIZES)
def spatial(call: Call) -> Any:
    """Neighbours along the last axes are combined; their number is in the operator's name."""
    x = call.all_axes()[0]
    match = re.search(r"(\d)d", str(call.node.target))
    channels = len(x) - int(match[1] if match else len(x))
    for axis in x[channels:]:
        pin(axis, "")
    value = call.node.meta["val"]
    if isinstance(value, (list, tuple)):
        return [(*x[:channels], *fixed_like(shape[channels:])) for shape in call.shapes]
    return (*x[:channels], *fixed_like(call.shape[channels:]))


@rule("max_unpool2d", "max_unpool3d")
def unpool(call: Call) -> Axes:
    """Maxima go back to the places that they came from."""
    x, places = call.axes("self"), call.axes("indices")
    kernel = int(call.name[-2])
    for axis in (*x[-kernel:], *places[-kernel:]):
        pin(axis, "")
    return (*broadcast(x[:-kernel], places[:-kernel]), *fixed_like(call.shape[-kernel:]))
