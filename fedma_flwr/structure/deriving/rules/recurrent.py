"""Recurrent layers and cells: each gate has one block of the hidden units."""

from __future__ import annotations

from typing import Any

from torch import fx

from fedma_flwr.structure.deriving.atoms import Axes, Axis, fixed, free, pin, size, unify
from fedma_flwr.structure.deriving.reshaping import concat
from fedma_flwr.structure.deriving.rules.call import Call, Stack, broadcast, fixed_like, rule

_ZEROS = ("zeros", "zeros_like", "new_zeros")
_LAYERS = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def _name(node: fx.Node) -> str:
    return str(node.target).removeprefix("aten.").partition(".")[0]


def _weights(call: Call, gates: int, weights: list[Axes], x: Axis, h: Axis) -> Axis:
    """Unite the weights of one direction of one layer; the axis of its output."""
    into, recurrent, *others = weights
    units = free(size(recurrent[0]) // gates)
    blocks = concat([units] * gates)
    for axes in (into, recurrent, *(other for other in others if len(other) == 1)):
        unify(axes[0], blocks)
    call.contract(into[1], x)
    projection = next((other for other in others if len(other) == 2), None)
    out = units
    if projection is not None:
        call.contract(projection[1], units)
        out = projection[0]
    call.contract(recurrent[1], out)
    unify(h, out)
    return units


@rule("lstm.input", "gru.input", "rnn_tanh.input", "rnn_relu.input")
@rule("lstm.data", "gru.data", "rnn_tanh.data", "rnn_relu.data")
def recurrent_layers(call: Call) -> Any:
    """All layers and directions of ``nn.LSTM``, ``nn.GRU`` or ``nn.RNN``."""
    gates = _LAYERS[_name(call.node)]
    packed = "data" in call.arguments
    x, weights = call.axes("data" if packed else "input"), call.many("params")
    ways = 2 if call["bidirectional"] else 1
    count = int(call["num_layers"]) * ways
    each = len(weights) // count
    states = _initial_states(call, count)
    batch = _batch(call, x)
    stream, outputs, cells = x[-1], [], []
    for index in range(count):
        own = weights[index * each : (index + 1) * each]
        h = states[0][index] or (batch, free(_output_size(own)))
        unify(h[0], batch)
        units = _weights(call, gates, own, stream, h[1])
        if len(states) > 1 and (c := states[1][index]):
            unify(c[0], batch)
            unify(c[1], units)
        outputs.append(h[1])
        cells.append(units)
        if (index + 1) % ways == 0:
            stream = concat(outputs[-ways:])
    hidden = [Stack(tuple((batch, axis) for axis in axes)) for axes in (outputs, cells)]
    return [(*x[:-1], stream), *hidden[: len(states)]]


def _batch(call: Call, x: Axes) -> Axis:
    if "data" in call.arguments:  # sequences of several lengths, one after the other
        call.pin(x[0], "sequences are packed")
        return fixed(call.shapes[1][1])
    return x[0] if call["batch_first"] else x[1]


@rule("_pack_padded_sequence")
def packed_sequence(call: Call) -> list[Axes]:
    """``(batch, steps, *)`` or ``(steps, batch, *)`` becomes ``(places, *)``."""
    x = call.axes("input")
    for axis in (*x[:2], *call.axes("lengths")):
        call.pin(axis, "sequences are packed")
    return [(*fixed_like(call.shapes[0][:1]), *x[2:]), fixed_like(call.shapes[1])]


@rule("_pad_packed_sequence")
def padded_sequence(call: Call) -> list[Axes]:
    """``(places, *)`` becomes ``(batch, steps, *)`` or ``(steps, batch, *)``."""
    data = call.axes("data")
    for axis in (data[0], *call.axes("batch_sizes")):
        call.pin(axis, "sequences are packed")
    return [(*fixed_like(call.shapes[0][:2]), *data[1:]), fixed_like(call.shapes[1])]


def _output_size(weights: list[Axes]) -> int:
    return size(weights[1][1])


def _initial_states(call: Call, count: int) -> list[list[Axes | None]]:
    """For each kind of state the axes of every entry; None where it starts from zeros."""
    given = call["hx"] if isinstance(call["hx"], list) else [call["hx"]]
    nodes = call.node.args[2 if "data" in call.arguments else 1]
    sources = list(nodes) if isinstance(nodes, (list, tuple)) else [nodes]
    return [
        [None] * count if _only_zeros(source) else list(_entries(value, count))
        for value, source in zip(given, sources, strict=True)
    ]


def _only_zeros(node: Any) -> bool:
    """Whether a tensor is zero and nothing but recurrent layers ever sees it."""
    return (
        isinstance(node, fx.Node)
        and _name(node) in _ZEROS
        and all(_name(user) in _LAYERS for user in node.users)
    )


def _entries(value: Axes | Stack, count: int) -> tuple[Axes, ...]:
    if isinstance(value, Stack):
        return value.entries
    pin(value[0])
    return (value[1:],) * count


def _cell(call: Call, gates: int) -> Axes:
    hx = call["hx"]
    states = call.many("hx") if isinstance(hx, list) else [call.axes("hx")]
    names = ("w_ih", "w_hh", "b_ih", "b_hh")
    weights = [axes for name in names if (axes := call.optional(name))]
    x, h = call.axes("input"), states[0]
    units = _weights(call, gates, weights, x[-1], h[-1])
    for state in states[1:]:
        unify(state[-1], units)
    return (*broadcast(x[:-1], *(state[:-1] for state in states)), units)


@rule("lstm_cell")
def lstm_cell(call: Call) -> list[Axes]:
    """One step of an LSTM: the new hidden state and the new cell state."""
    out = _cell(call, 4)
    return [out, out]


@rule("gru_cell")
def gru_cell(call: Call) -> Axes:
    """One step of a GRU."""
    return _cell(call, 3)


@rule("rnn_tanh_cell", "rnn_relu_cell")
def rnn_cell(call: Call) -> Axes:
    """One step of a plain recurrent network."""
    return _cell(call, 1)
