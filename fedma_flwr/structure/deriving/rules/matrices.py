"""Functions of whole matrices: most of them follow a permutation of rows and columns."""

from __future__ import annotations

from fedma_flwr.structure.deriving.atoms import Axes, free, size, unify
from fedma_flwr.structure.deriving.rules.call import Call, fixed_like, rule


@rule("eye")
def identity(call: Call) -> Axes:
    """The identity stays what it is if rows and columns are permuted alike."""
    rows, columns = call.shape
    if rows != columns:
        return fixed_like(call.shape)
    both = free(rows)
    return both, both


@rule("diagonal", "diag", "diagonal_copy")
def diagonal(call: Call) -> Axes:
    """Two axes meet on a diagonal; a vector becomes one."""
    x = call.axes("self")
    offset = int(call.arguments.get("offset", call.arguments.get("diagonal", 0)))
    if len(x) == 1 and not offset:
        return x[0], x[0]
    one, other = (int(call.arguments.get(n, at)) % len(x) for n, at in (("dim1", 0), ("dim2", 1)))
    if offset or one == other or size(x[one]) != size(x[other]):
        call.pin_all("a diagonal is taken")
        return fixed_like(call.shape)
    unify(x[one], x[other])
    return (*(axis for dim, axis in enumerate(x) if dim not in (one, other)), x[one])


@rule("diag_embed")
def diag_embed(call: Call) -> Axes:
    """The last axis becomes the diagonal of a matrix."""
    x = call.axes("self")
    if (call["offset"], call["dim1"], call["dim2"]) != (0, -2, -1):
        call.pin_all("a diagonal is taken")
        return fixed_like(call.shape)
    return (*x, x[-1])


@rule("trace", "linalg_det", "det", "logdet")
def determinant(call: Call) -> Axes:
    """A number for each matrix: the same if rows and columns are permuted alike."""
    x = call.all_axes()[0]
    unify(x[-2], x[-1])
    return x[:-2]


@rule("slogdet", "linalg_slogdet")
def log_determinant(call: Call) -> list[Axes]:
    """As `determinant`: the sign, and the logarithm."""
    return [determinant(call)] * len(call.shapes)


@rule("inverse", "linalg_inv")
def inverse(call: Call) -> Axes:
    """Rows become columns."""
    x = call.all_axes()[0]
    return (*x[:-2], x[-1], x[-2])


@rule("matrix_exp", "linalg_matrix_exp", "matrix_power", "linalg_matrix_power")
def powers(call: Call) -> Axes:
    """Sums and products of a matrix with itself."""
    x = call.all_axes()[0]
    unify(x[-2], x[-1])
    return x


@rule("linalg_solve")
def solve(call: Call) -> Axes:
    """``A X = B`` for one matrix ``A`` and one matrix or vector ``B``."""
    left, right = call.axes("A"), call.axes("B")
    if len(left) != 2 or len(right) > 2 or not call["left"]:
        call.pin_all("systems of equations are solved")
        return fixed_like(call.shape)
    unify(left[0], right[0])
    return (left[1], *right[1:])
