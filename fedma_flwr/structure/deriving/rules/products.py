"""Matrix products, linear layers and einsum: contracted axes are united."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import fx

from fedma_flwr.structure.deriving.atoms import Axes, Axis, size, unify
from fedma_flwr.structure.deriving.rules.call import Call, broadcast, fixed_like, rule


@rule("linear")
def linear(call: Call) -> Axes:
    """``y[..., o] = sum_i x[..., i] w[o, i] + b[o]``."""
    x, w, bias = call.axes("input"), call.axes("weight"), call.optional("bias")
    call.contract(w[-1], x[-1])
    out = w[:-1]
    if bias and out:
        unify(bias[0], out[0])
    return (*x[:-1], *out)


@rule("bilinear")
def bilinear(call: Call) -> Axes:
    """``y[..., o] = sum_ij x[..., i] w[o, i, j] z[..., j] + b[o]``."""
    x, z, w = call.axes("input1"), call.axes("input2"), call.axes("weight")
    call.contract(w[1], x[-1])
    call.contract(w[2], z[-1])
    if bias := call.optional("bias"):
        unify(bias[0], w[0])
    return (*broadcast(x[:-1], z[:-1]), w[0])


def _product(call: Call, left: Axes, right: Axes) -> Axes:
    """`matmul` of operands of any rank."""
    inner = right[-2] if len(right) > 1 else right[0]
    call.contract(inner, left[-1])
    batch = broadcast(left[:-2], right[:-2])
    return (*batch, *left[-2:-1], *(right[-1:] if len(right) > 1 else ()))


@rule("matmul", "mm", "bmm", "mv", "dot", "inner.default", "vdot")
def matmul(call: Call) -> Axes:
    """The last axis of one operand is summed with the last but one of the other."""
    left, right = call.all_axes()
    return _product(call, left, right)


@rule("addmm", "baddbmm", "addmv", "addbmm", "addmm_", "baddbmm_")
def product_and_sum(call: Call) -> Axes:
    """``self + left @ right``."""
    added, left, right = call.all_axes()
    result = _product(call, left, right)
    if len(call.shape) < len(result):  # addbmm sums over the batch
        result = result[1:]
    return broadcast(result, added)


@rule("outer", "ger")
def outer(call: Call) -> Axes:
    """``y[i, j] = a[i] b[j]``."""
    left, right = call.all_axes()
    return (left[0], right[0])


@rule("einsum")
def einsum(call: Call) -> Axes:
    """Axes with the same letter are united; letters without a place in the result are summed."""
    equation = str(call["equation"]).replace(" ", "")
    terms, arrow, result = equation.partition("->")
    operands = call.many("tensors")
    letters = terms.split(",")
    if any("." in term or len(set(term)) != len(term) for term in letters) or not arrow:
        call.pin_all("an equation with '...', repeated letters or without '->'")
        return fixed_like(call.shape)
    axis_of: dict[str, Axis] = {}
    nodes = cast(Sequence[fx.Node], call.node.args[1])
    for term, axes, node in zip(letters, operands, nodes, strict=True):
        for letter, axis in zip(term, axes, strict=True):
            if letter not in result and _is_weight(node):
                call.contracted.append(axis)
            if letter not in axis_of or size(axis_of[letter]) == 1:
                axis_of[letter] = axis
            elif size(axis) != 1:
                unify(axis_of[letter], axis)
    return tuple(axis_of[letter] for letter in result)


def _is_weight(node: fx.Node) -> bool:
    """Whether a tensor is one of the graph's inputs, seen from another side at most."""
    while len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    return node.op in ("placeholder", "get_attr")


@rule("_grouped_mm")
def grouped_mm(call: Call) -> Axes:
    """Rows times the matrix of their expert; offsets number both."""
    rows, experts = call.axes("self"), call.axes("mat2")
    inputs, outputs = experts[1:]  # other forms are not covered
    for axis in (rows[0], experts[0]):
        call.pin(axis, "offsets number its positions")
    call.contract(inputs, rows[1])
    return (rows[0], outputs)


@rule("_weight_norm")
def weight_norm(call: Call) -> Axes:
    """``v * g / norm(v)``: the norm over all axes but one is the same in any order."""
    v, g = call.axes("v"), call.axes("g")
    if call["dim"] != -1:  # else one norm for all, to which zeros add nothing
        call.directions.append((v, call.dim("dim", len(v))))
    return broadcast(v, g)
