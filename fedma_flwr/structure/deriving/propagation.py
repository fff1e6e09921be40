"""Propagate the axes of tensors through a captured graph, operator by operator."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from torch import Tensor, fx

from fedma_flwr.structure.deriving.atoms import (
    Axes,
    SizeMismatchError,
    fixed,
    leaves,
    pin,
    size,
    unify,
)
from fedma_flwr.structure.deriving.captured import Captured, location, source_line
from fedma_flwr.structure.deriving.rules import RULES, Call, Stack
from fedma_flwr.structure.deriving.trace import OF_AN_INPUT, Trace

# Operators of Python and of the tracer that neither make nor change tensors.
_NO_TENSORS = ("_assert", "sym_", "profiler.")
# Higher-order operators that run a graph of their own under another setting.
_WRAPPERS = ("wrap_with_set_grad_enabled", "wrap_with_autocast")

# What a rule raises where an operator is used in a way that it does not know.
_NOT_COVERED = (SizeMismatchError, ValueError, TypeError, LookupError, AttributeError)


@dataclass
class Propagation:
    """The propagation through one captured program; what it learns goes into the trace."""

    captured: Captured
    trace: Trace
    values: dict[fx.Node, Any] = field(default_factory=dict)

    def run(self) -> None:
        """Propagate from inputs to outputs; inputs and outputs are pinned."""
        module, written = self.captured.module, self.captured.written
        self.trace.placeholders.clear()  # names of another graph
        for node in module.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = self._input(node, node.meta.get("val"))
        for value, target in zip_longest(self._run_nodes(module), written):
            if target is not None:
                self._unify(value, self.trace.axes_of(target))
            else:
                self._output(value)

    def _input(self, node: fx.Node, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if name := self.captured.states.get(node.name):
            self.trace.placeholders[node.name] = name
            return self.trace.axes_of(name)
        reason = self.captured.reasons.get(node.name) or OF_AN_INPUT
        return tuple(fixed(length, reason) for length in value.shape)

    def _run_nodes(self, module: fx.GraphModule) -> list[Any]:
        outputs: list[Any] = []
        for node in module.graph.nodes:
            if node.op == "call_function":
                for source in node.all_input_nodes:
                    self.trace.use(source.name)
                self.values[node] = self._call(node)
            elif node.op == "get_attr":
                self.values[node] = self._attribute(module, node)
            elif node.op == "output":
                outputs = list(_flat(self._lookup(node.args[0])))
        return outputs

    def _attribute(self, module: fx.GraphModule, node: fx.Node) -> Any:
        value = operator.attrgetter(str(node.target))(module)
        if node.name in self.captured.states or not isinstance(value, Tensor):
            return self._input(node, value)
        return tuple(fixed(n, "meets a constant of the code") for n in value.shape)

    def _lookup(self, argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            return self.values[argument]
        if isinstance(argument, (list, tuple)):
            return [self._lookup(entry) for entry in argument]
        if isinstance(argument, dict):
            return [self._lookup(entry) for entry in argument.values()]
        return argument

    def _call(self, node: fx.Node) -> Any:
        if node.target is operator.getitem:
            return self._lookup(node.args[0])[node.args[1]]
        name = str(node.target)
        if name in _WRAPPERS:
            return self._wrapped(node)
        bare = name.removeprefix("aten.")
        if bare.startswith(_NO_TENSORS):
            return None
        rule = RULES.get(bare) or RULES.get(bare.rpartition(".")[0])
        schema = getattr(node.target, "_schema", None)
        if rule is None or schema is None:
            return self._kept_in_order(node, "has no rule")
        try:
            result = rule(self._arguments(node, schema))
            self._check(node, result)
            _explain(node, result)
        except _NOT_COVERED:
            return self._kept_in_order(node, "is used in a way that its rule does not cover")
        return result

    def _kept_in_order(self, node: fx.Node, why: str) -> Any:
        """Pin all that an operator reads: right for whatever it makes of it."""
        reason = f"{location(node)}, {node.target}: the operator {why} ({source_line(node)})"
        for argument in node.all_input_nodes:
            for value in _flat(self._lookup(argument)):
                axes = value.merged() if isinstance(value, Stack) else value
                for axis in axes if isinstance(axes, tuple) else ():
                    pin(axis, reason)
        value = node.meta.get("val")
        if isinstance(value, (list, tuple)):
            return [_in_order(entry) for entry in value]
        return _in_order(value)

    def _arguments(self, node: fx.Node, schema: Any) -> Call:
        given = dict(zip((a.name for a in schema.arguments), node.args, strict=False))
        raw = {
            a.name: given.get(a.name, node.kwargs.get(a.name, a.default_value))
            for a in schema.arguments
        }
        return Call(
            node=node,
            arguments={name: self._lookup(value) for name, value in raw.items()},
            tensors=tuple(name for name, value in raw.items() if _holds_nodes(value)),
            where=f"{location(node)}, {str(node.target).removeprefix('aten.').partition('.')[0]}",
            contracted=self.trace.contracted,
            variances=self.trace.variances,
            directions=self.trace.directions,
        )

    def _wrapped(self, node: fx.Node) -> list[Any]:
        """Run the inner graph of a wrapper on its operands."""
        values = [self._lookup(argument) for argument in node.args]
        position = next(i for i, value in enumerate(values) if isinstance(value, fx.GraphModule))
        inner = values[position]
        operands = node.args[position + 1 :]
        placeholders = [n for n in inner.graph.nodes if n.op == "placeholder"]
        for placeholder, operand in zip(placeholders, operands, strict=True):
            self.values[placeholder] = self._lookup(operand)
            self.trace.placeholders.pop(placeholder.name, None)
            if isinstance(operand, fx.Node) and operand.name in self.trace.placeholders:
                own = self.trace.placeholders[operand.name]
                self.trace.placeholders[placeholder.name] = own
        return self._run_nodes(inner)

    def _check(self, node: fx.Node, result: Any) -> None:
        """Compare the result of a rule with the shape that the operator returned."""
        value = node.meta.get("val")
        pairs = (
            [(value, result)]
            if isinstance(value, Tensor)
            else zip(value or (), result or (), strict=False)
        )
        for tensor, axes in pairs:
            if isinstance(axes, tuple) and isinstance(tensor, Tensor):
                shape = tuple(size(axis) for axis in axes)
                if shape != tuple(tensor.shape):
                    raise SizeMismatchError(f"{shape} instead of {tuple(tensor.shape)}")

    def _output(self, value: Any) -> None:
        axes = value.merged() if isinstance(value, Stack) else value
        for axis in axes if isinstance(axes, tuple) else ():
            pin(axis)
            self.trace.outputs.append(axis)

    def _unify(self, value: Axes, axes: Axes) -> None:
        for one, other in zip(value, axes, strict=True):
            unify(one, other)


def _explain(node: fx.Node, result: Any) -> None:
    """Say of positions that are made of nothing, and have an order, what made them."""
    for axes in _flat(result) if not node.all_input_nodes else ():
        for axis in axes if isinstance(axes, tuple) else ():
            for atom in leaves(axis):
                if atom.pinned and not atom.reason:
                    name = str(node.target).removeprefix("aten.").partition(".")[0]
                    atom.reason = f"meets positions made by {location(node)}, {name}"


def _in_order(value: Any) -> Any:
    return tuple(fixed(length) for length in value.shape) if isinstance(value, Tensor) else None


def _holds_nodes(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(isinstance(entry, fx.Node) for entry in value)
    return isinstance(value, fx.Node)


def _flat(value: Any) -> Iterable[Any]:
    """The tensors of nested lists of results (axes are tuples, lists nest)."""
    if isinstance(value, list):
        for entry in value:
            yield from _flat(entry)
    else:
        yield value
