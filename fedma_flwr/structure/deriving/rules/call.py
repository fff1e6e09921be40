"""What a rule sees: one call of an operator, its arguments by name, tensors as their axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from fedma_flwr.structure.deriving.atoms import Axes, Axis, fixed, pin, size, unify


@dataclass(frozen=True)
class Stack:
    """A tensor whose entries along its first axis may have different axes (``h_n`` of an LSTM).

    Parameters
    ----------
    entries : tuple of Axes
        The axes of each entry.
    """

    entries: tuple[Axes, ...]

    def merged(self) -> Axes:
        """The axes of the whole tensor: all entries must be permuted alike."""
        first = self.entries[0]
        for entry in self.entries[1:]:
            for one, other in zip(first, entry, strict=True):
                unify(one, other)
        return (fixed(len(self.entries)), *first)


@dataclass(frozen=True)
class Call:
    """One call of an operator.

    Parameters
    ----------
    node : torch.fx.Node
        The call in the captured graph.
    arguments : dict
        All arguments by the name that the operator's schema gives them; tensors as `Axes`,
        lists of tensors as lists of `Axes`, everything else as it is.
    tensors : tuple of str
        Names of the arguments that hold tensors.
    where : str
        The operator and the module that calls it, for reasons and messages.
    contracted : list of Axis
        Axes that are summed over or indexed by some call: what a weight takes in, not what it
        makes.
    variances : list of (Axes, Axes)
        Tensors that some call reads as a running variance, each with the running mean beside it.
    """

    node: fx.Node
    arguments: dict[str, Any]
    tensors: tuple[str, ...]
    where: str
    contracted: list[Axis]
    variances: list[tuple[Axes, Axes]]

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def axes(self, name: str) -> Axes:
        """The axes of a tensor argument."""
        return _merge(self.arguments[name])

    def optional(self, name: str) -> Axes | None:
        """The axes of a tensor argument that may be absent."""
        return None if self.arguments.get(name) is None else self.axes(name)

    def many(self, name: str) -> list[Axes]:
        """The axes of every tensor in a list argument."""
        return [_merge(value) for value in self.arguments[name] if value is not None]

    def all_axes(self) -> list[Axes]:
        """The axes of all tensor arguments, in their order."""
        found: list[Axes] = []
        for name in self.tensors:
            value = self.arguments[name]
            found += self.many(name) if isinstance(value, list) else [self.axes(name)]
        return found

    def dim(self, name: str, rank: int) -> int:
        """An argument that counts axes, from the front."""
        return int(self.arguments[name]) % max(rank, 1)

    def dims(self, name: str, rank: int) -> list[int]:
        """An argument that lists axes; None and an empty list stand for all of them."""
        value = self.arguments[name]
        if value is None or value == []:
            return list(range(rank))
        values = value if isinstance(value, Sequence) else [value]
        return [int(dim) % max(rank, 1) for dim in values]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        return tuple(self.node.meta["val"].shape)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the results of an operator that returns several."""
        return [tuple(value.shape) for value in self.node.meta["val"]]

    def uses(self, index: int) -> bool:
        """Whether anything reads the given result of an operator that returns several."""
        return any(user.args[1] == index and user.users for user in self.node.users)

    def pin(self, axis: Axis, why: str) -> None:
        """Forbid every permutation of an axis, for a reason that names this call."""
        pin(axis, f"{self.where}: {why}")

    def pin_all(self, why: str) -> None:
        """Forbid every permutation of every tensor argument."""
        for axes in self.all_axes():
            for axis in axes:
                self.pin(axis, why)

    def contract(self, weight: Axis, other: Axis) -> None:
        """Unite two axes that are summed over together, the first of them a weight's."""
        self.contracted.append(weight)
        unify(weight, other)


Rule = Callable[[Call], Any]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators, named as in ``torch.ops.aten``, with or without overload.

    A name may hold several, separated by spaces.
    """

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(" ".join(names).split(), function))
        return function

    return register


def broadcast(*operands: Axes) -> Axes:
    """Unite the axes of operands that are broadcast against each other; their result's axes."""
    rank = max((len(axes) for axes in operands), default=0)
    result: list[Axis] = []
    for position in range(-rank, 0):
        axes = [operand[position] for operand in operands if len(operand) >= -position]
        wide = [axis for axis in axes if size(axis) != 1]
        for axis in wide[1:]:
            unify(wide[0], axis)
        result.append((wide or axes)[0])
    return tuple(result)


def fixed_like(shape: Sequence[int]) -> Axes:
    """Axes of the given sizes whose positions must stay where they are."""
    return tuple(fixed(length) for length in shape)


def _merge(value: Any) -> Axes:
    axes: Axes = value.merged() if isinstance(value, Stack) else value
    return axes
