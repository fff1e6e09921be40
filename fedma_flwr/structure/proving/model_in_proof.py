"""The private float64 copy of a model that a spec is proven on, and what its output changes by."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from fedma_flwr.structure.axes import SpecError
from fedma_flwr.structure.failing_calls import refuse_failing_call
from fedma_flwr.structure.model_copies import (
    Example,
    Inputs,
    call,
    cpu_examples,
    plain_attention,
    private_copy,
    quiet,
    tensors_of,
)
from fedma_flwr.structure.output_tensors import tensors_in
from fedma_flwr.structure.proving.double_precision import InDouble
from fedma_flwr.structure.proving.progress import Progress
from fedma_flwr.structure.proving.training_mode_runs import training_mode
from fedma_flwr.structure.proving.without_chance import WithoutChance
from fedma_flwr.structure.refusals import first_line
from fedma_flwr.structure.restoring import restored
from fedma_flwr.structure.spec import PermutationSpec

Outputs = list[Tensor]


class ModelInProof:
    """A private copy of a model that a spec is proven on: evaluation mode, float64, on the CPU.

    Parameters
    ----------
    spec : PermutationSpec
        The spec to test.
    model : nn.Module
        The model; it is copied.
    example_inputs : Tensor, tuple, dict, or list of them
        Inputs as in ``model(*example_inputs)`` or ``model(**example_inputs)``; or a list of
        several such examples. A run is one of all examples.

    Raises
    ------
    SpecError
        If the spec does not fit the model's state dict, or the model does not run.
    """

    def __init__(self, spec: PermutationSpec, model: nn.Module, example_inputs: Inputs) -> None:
        if any(tensor.is_meta for tensor in tensors_of(model).values()):
            raise SpecError("The model is on the meta device: it has no weights to prove with.")
        self.module = _in_double(private_copy(model, example_inputs).eval())
        self.examples: list[Example] = tree_map(_as_double, cpu_examples(example_inputs))
        self.inputs = self.examples
        self.training = False  # whether to run in training mode
        self.random: dict[bool, bool] = {}  # by mode, whether the model draws random numbers
        self.spec = spec
        self.progress = Progress(type(model).__name__)
        # References: writing to them writes to the model.
        self.tensors: dict[str, Tensor] = {
            name: tensor.detach() for name, tensor in tensors_of(self.module).items()
        }
        self.original = {name: tensor.detach() for name, tensor in tensors_of(model).items()}
        self.parameters = {name for name, _ in self.module.named_parameters()}
        spec.check(self.tensors)
        self.tied = self._ties()
        try:
            self.run()
        except SpecError:
            refuse_failing_call(model, example_inputs)
            raise

    def _ties(self) -> set[str]:
        """Further names of tied parameters."""
        first: dict[int, str] = {}
        for name, tensor in tensors_of(self.module).items():
            twin = first.setdefault(id(tensor), name)
            if self.spec.axes[twin] != self.spec.axes[name]:
                raise SpecError(
                    f"{twin!r} and {name!r} are one tied parameter, but the spec gives them "
                    f"different axes: {self.spec.describe(twin)} and {self.spec.describe(name)}."
                )
        return self.spec.axes.keys() - set(first.values())

    def run(self) -> Outputs:
        """The output tensors of the model for the present inputs, of all examples in turn.

        Raises
        ------
        SpecError
            If the model does not run.
        """
        outputs: Outputs = []
        for number, inputs in enumerate(self.inputs):
            which = f" (example_inputs[{number}])" if len(self.inputs) > 1 else ""
            outputs += self._run(inputs, which)
        return outputs

    def _run(self, inputs: Example, which: str) -> Outputs:
        try:
            mode = training_mode(self.module) if self.training else nullcontext()
            with quiet(), restored(self.module), plain_attention(), InDouble(), mode:
                torch.default_generator.manual_seed(0)  # alone: the model is on the CPU
                with self._without_chance():
                    outputs = call(self.module, tree_map(_copy, inputs))
        except Exception as error:
            raise SpecError(
                f"The model does not run in float64 on these inputs{which} "
                f"({type(error).__name__}: {first_line(error)})."
            ) from error
        self.progress.step()
        return tensors_in(outputs)

    @contextmanager
    def _without_chance(self) -> Iterator[None]:
        """Random numbers without an order, in the modes in which the model draws any."""
        if self.random.get(self.training) is False:  # it takes time
            yield
            return
        with WithoutChance() as mode:
            yield
        self.random[self.training] = mode.met

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Overwrite the model's tensors."""
        for name, tensor in state.items():
            self.tensors[name].copy_(tensor)

    def permuted(self, permutations: Mapping[str, Tensor]) -> Outputs:
        """The output with units permuted; the tensors are as before afterwards."""
        inverse = {group: order.argsort() for group, order in permutations.items()}
        self._permute(permutations)
        try:
            return self.run()
        finally:
            self._permute(inverse)

    def _permute(self, permutations: Mapping[str, Tensor]) -> None:
        # One tensor at a time, and in place: large models are in memory once.
        for name, tensor in self.tensors.items():
            for dim, axis in enumerate(self.spec.axes[name] if name not in self.tied else ()):
                if axis.groups & permutations.keys():
                    order = axis.positions(permutations, self.spec.sizes)
                    moved = (order != torch.arange(len(order))).nonzero()[:, 0]
                    units = tensor.index_select(dim, order[moved])
                    if len(moved) == len(order):
                        tensor.copy_(units)  # faster
                    else:
                        tensor.index_copy_(dim, moved, units)

    def change(self, state: Mapping[str, Tensor], reference: Outputs) -> float:
        """Relative change of the output when some tensors are replaced, for as long as it takes."""
        before = {name: self.tensors[name].clone() for name in state}
        try:
            self.load(state)
            return relative_change(self.run(), reference)
        finally:
            self.load(before)


def relative_change(outputs: Outputs, reference: Outputs) -> float:
    """Largest change of any output tensor, relative to its largest entry."""
    if len(outputs) != len(reference):
        return math.inf
    return max(map(_change, outputs, reference), default=0.0)


def _change(output: Tensor, reference: Tensor) -> float:
    if output.shape != reference.shape or output.dtype != reference.dtype:
        return math.inf
    if not (output.is_floating_point() or output.is_complex()):
        return 0.0 if torch.equal(output, reference) else math.inf
    same = (output == reference) | (output.isnan() & reference.isnan())
    difference = torch.where(same, 0.0, (output - reference).abs())
    scale = reference.abs()[reference.isfinite()]
    largest = float(scale.max()) if scale.numel() else 0.0
    worst = float(difference.max()) if difference.numel() else 0.0
    return worst / largest if largest else (math.inf if worst else 0.0)


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _as_double(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.is_complex():
        return value.to(torch.complex128)
    return value.double() if value.is_floating_point() else value


def _in_double(module: nn.Module) -> nn.Module:
    """A module in float64 and complex128, without gradients."""
    for parameter in module.parameters():
        parameter.detach_().requires_grad_(False)  # those of scripted modules are no leaves
    module._apply(_as_double)
    return module
