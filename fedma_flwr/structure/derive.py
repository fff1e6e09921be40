"""Derive a spec: propagate axis factors through the captured graph, operator by operator."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, OutputKind

from fedma_flwr.structure.axes import SpecError, UnsupportedModelError
from fedma_flwr.structure.build import Trace, build_spec
from fedma_flwr.structure.capture import (
    capture,
    cpu_inputs,
    location,
    private_copy,
    source_line,
    statistics_of,
    unsupported,
)
from fedma_flwr.structure.factors import (
    Axes,
    SizeMismatchError,
    fixed,
    free,
    pin,
    size,
    unify,
)
from fedma_flwr.structure.prove import prove_spec
from fedma_flwr.structure.rules import RULES, Call, Stack
from fedma_flwr.structure.spec import PermutationSpec

# Operators of Python and of the tracer that neither make nor change tensors.
_NO_TENSORS = ("_assert", "sym_")
# Higher-order operators that run a graph of their own under another setting.
_WRAPPERS = ("wrap_with_set_grad_enabled", "wrap_with_autocast")


def derive_spec(model: nn.Module, example_inputs: tuple[Any, ...]) -> PermutationSpec:
    """Derive the spec of a model and prove it.

    Parameters
    ----------
    model : nn.Module
        Any model that ``torch.export`` can capture. It is copied, never changed.
    example_inputs : tuple
        Inputs as in ``model(*example_inputs)``. Batches of at least two let layers with
        training-only branches be seen as well.

    Returns
    -------
    PermutationSpec
        The proven spec (see `prove_spec`): its groups in forward order, named after the module
        that makes their units; those that must keep their width say why.

    Raises
    ------
    UnsupportedModelError
        If an operator has no rule (the message names the operator, the module and the source
        line), if the model cannot be captured, or if the spec cannot be proven.
    """
    try:
        spec = propose_spec(model, example_inputs)
        return prove_spec(spec, model, example_inputs, drop_unused=True).spec
    except UnsupportedModelError:
        raise
    except SpecError as error:
        raise unsupported(f"The derived spec could not be proven: {error}") from error
    except Exception as error:  # callers know nothing of graphs
        raise unsupported(f"Derivation failed ({type(error).__name__}: {error}).") from error


def propose_spec(model: nn.Module, example_inputs: tuple[Any, ...]) -> PermutationSpec:
    """Derive the spec of a model without proving it: all groups are taken to be growable.

    Parameters and errors are those of `derive_spec`. The model may be on the meta device.
    """
    twin = private_copy(model, example_inputs)
    inputs = cpu_inputs(example_inputs)
    state = twin.state_dict(keep_vars=True)
    names = {name: next(other for other in state if state[other] is state[name]) for name in state}
    trace = Trace(
        state={name: _new_axes(state[name]) for name in names.values()},
        names=names,
        buffers=frozenset(n for n, t in state.items() if not isinstance(t, nn.Parameter)),
    )
    _Walk(capture(twin.eval(), inputs), trace).run()
    try:
        training = capture(twin.train(), inputs)
    except UnsupportedModelError:
        training = None  # a batch of one in a batch norm, for example
    if training is not None:
        _Walk(training, trace).run()
    _pin_constants(trace, statistics_of(twin, inputs), twin.state_dict())
    unreached = [name for name, _ in twin.named_parameters() if not trace.is_used(name)]
    if unreached:
        raise unsupported(
            f"The model's output does not depend on the parameters {unreached} for these example "
            "inputs, so that it is unknown how they follow their units. Remove them, or freeze "
            "their use in another way."
        )
    return build_spec(trace)


def _new_axes(tensor: Tensor) -> Axes:
    if tensor.is_floating_point() or tensor.is_complex():
        return tuple(free(length) for length in tensor.shape)
    return tuple(fixed(length, "meets a buffer of integers") for length in tensor.shape)


def _pin_constants(trace: Trace, statistics: Set[str], values: Mapping[str, Tensor]) -> None:
    """Pin what buffers that training does not change tell apart: masks, slopes, frequencies.

    To permute them with their units would leave one model's function as it is; but units that
    differ by constants of the code must not be matched, and their constants not be averaged.
    """
    for name in (trace.buffers & trace.state.keys()) - statistics:
        for dim, axis in enumerate(trace.state[name]):
            if not _is_uniform(values[name], dim):
                pin(axis, f"the constants in {name!r} tell its positions apart")


def _is_uniform(tensor: Tensor, dim: int) -> bool:
    """Whether a tensor has the same entries at all positions along an axis."""
    if tensor.is_meta or tensor.shape[dim] < 2:
        return not tensor.is_meta
    return bool((tensor == tensor.narrow(dim, 0, 1)).all())


@dataclass
class _Walk:
    """The propagation through one captured program; what it learns goes into the trace."""

    program: torch.export.ExportedProgram
    trace: Trace
    values: dict[fx.Node, Any] = field(default_factory=dict)

    def run(self) -> None:
        """Propagate from inputs to outputs; inputs and outputs are pinned."""
        specs = {spec.arg.name: spec for spec in self.program.graph_signature.input_specs}
        module = self.program.graph_module
        for node in module.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = self._input(node, specs[node.name])
        outputs = self._run_nodes(module)
        for spec, value in zip(self.program.graph_signature.output_specs, outputs, strict=True):
            if spec.kind == OutputKind.BUFFER_MUTATION and spec.target in self.trace.names:
                self._unify(value, self.trace.axes_of(spec.target))
            else:
                self._output(value)

    def _input(self, node: fx.Node, spec: Any) -> Any:
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            return value
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and spec.target in self.trace.names:
            self.trace.placeholders[node.name] = spec.target
            return self.trace.axes_of(spec.target)
        reason = {
            InputKind.BUFFER: "meets a buffer that the state dict lacks",
            InputKind.CONSTANT_TENSOR: "meets a constant of the code",
        }.get(spec.kind, "")
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
        return (
            tuple(fixed(n, "meets a constant of the code") for n in value.shape)
            if isinstance(value, Tensor)
            else value
        )

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
        schema = getattr(node.target, "_schema", None)
        bare = name.removeprefix("aten.")
        if bare.startswith(_NO_TENSORS):
            return None
        rule = RULES.get(bare) or RULES.get(bare.rpartition(".")[0])
        if rule is None or schema is None:
            raise unsupported(
                f"There is no rule for the operator {name}, called by {location(node)} at "
                f"{source_line(node)}."
            )
        try:
            result = rule(self._arguments(node, schema))
            self._check(node, result)
        except (SizeMismatchError, ValueError, TypeError, KeyError, IndexError) as error:
            raise unsupported(
                f"The rule for the operator {name}, called by {location(node)} at "
                f"{source_line(node)}, does not cover this use ({error})."
            ) from error
        return result

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
