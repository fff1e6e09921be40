"""Attention and embeddings."""

from __future__ import annotations

from typing import Any

from fedma_flwr.structure.deriving.atoms import Axes, pin, size, unify
from fedma_flwr.structure.deriving.rules.call import Call, broadcast, fixed_like, rule


@rule("scaled_dot_product_attention")
def attention(call: Call) -> Axes:
    """``softmax(q k^T + mask) v`` for ``(..., L, E)``, ``(..., S, E)`` and ``(..., S, V)``."""
    q, k, v = call.axes("query"), call.axes("key"), call.axes("value")
    if call["enable_gqa"]:
        for axes in (q, k, v):
            call.pin(axes[-3], "heads share keys and values")
        k, v = ((*axes[:-3], q[-3], *axes[-2:]) for axes in (k, v))
    unify(q[-1], k[-1])
    unify(k[-2], v[-2])
    if call["is_causal"]:
        call.pin(q[-2], "attention is causal")
        call.pin(k[-2], "attention is causal")
    batch = broadcast(q[:-2], k[:-2], v[:-2])
    if mask := call.optional("attn_mask"):
        broadcast((*batch, q[-2], k[-2]), mask)
    return (*batch, q[-2], v[-1])


@rule("embedding")
def embedding(call: Call) -> Axes:
    """Rows of a table, looked up by number."""
    table, numbers = call.axes("weight"), call.axes("indices")
    call.contracted.append(table[0])
    pin(table[0])
    return (*numbers, *table[1:])


@rule("embedding_renorm_")
def renormalised(call: Call) -> Axes:
    """Rows of a table are rescaled where their norm is too large, whatever their entries' order."""
    table = call.axes("self")
    call.contracted.append(table[0])
    pin(table[0])
    return table


@rule("embedding_bag")
def embedding_bag(call: Call) -> Any:
    """Sums of rows of a table; the bookkeeping that it also returns is not followed."""
    table = call.axes("weight")
    call.contracted.append(table[0])
    pin(table[0])
    for name in ("indices", "offsets", "per_sample_weights"):
        for axis in call.optional(name) or ():
            call.pin(axis, "it is cut into bags")
    bags = fixed_like(call.shapes[0][:1])
    return [(*bags, table[1]), None, None, None]


@rule("one_hot")
def one_hot(call: Call) -> Axes:
    """Numbers become positions."""
    numbers = call.axes("self")
    return (*numbers, *fixed_like(call.shape[-1:]))


@rule("pairwise_distance", "cosine_similarity")
def similarity(call: Call) -> Axes:
    """Two tensors are compared along one axis."""
    one, other = call.all_axes()
    axes = list(broadcast(one, other))
    if len(call.shape) < len(axes):
        dim = call.dim("dim", len(axes)) if "dim" in call.arguments else len(axes) - 1
        del axes[dim]
    return tuple(axes)


@rule("cdist")
def distances(call: Call) -> Axes:
    """Distances between all rows of one tensor and all rows of another."""
    one, other = call.all_axes()
    if size(one[-1]) == size(other[-1]):
        unify(one[-1], other[-1])
    return (*broadcast(one[:-2], other[:-2]), one[-2], other[-2])
