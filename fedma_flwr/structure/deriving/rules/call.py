"""What a rule sees: one call of an operator, its arguments by name, tensors as their axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
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
    directions : list of (Axes, int)
        Tensors that some call divides by their norms, each with the axis along which it has one.
    """

    node: fx.Node
    arguments: dict[str, Any]
    tensors: tuple[str, ...]
    where: str
    contracted: list[Axis]
    variances: list[tuple[Axes, Axes]]
    directions: list[tuple[Axes, int]]

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

    @property
    def name(self) -> str:
        """The operator's name without its library and overload."""
        return str(self.node.target).removeprefix("aten.").partition(".")[0]

    def optional_axes(self, name: str) -> Axes | None:
        """As `optional`, for an argument that is a tensor in some overloads only."""
        return self.axes(name) if name in self.tensors else None

    def picked(self, name: str, x: Axes) -> Picked:
        """What an argument that lists indices, one for each axis of `x`, picks."""
        dims: list[int] = []
        numbers: list[Axes] = []
        masked = False
        at = 0
        nodes = self.node.args[1]
        for node, index in zip(cast(Sequence[Any], nodes), self[name], strict=True):
            mask = node is not None and node.meta["val"].dtype in (torch.bool, torch.uint8)
            used = len(index) if mask else 1
            if index is not None:
                dims += range(at, at + used)
                numbers.append(index)
                masked = masked or mask
            at += used
        return Picked(tuple(dims), broadcast(*numbers) if not masked else (), x, masked)


@dataclass(frozen=True)
class Picked:
    """What indices pick.

    Parameters
    ----------
    dims : tuple of int
        The axes that are indexed.
    numbers : Axes
        The axes that stand for them in the result; none if they are not known.
    x : Axes
        The axes of what is indexed.
    masked : bool
        Whether an index is a mask.
    """

    dims: tuple[int, ...]
    numbers: Axes
    x: Axes
    masked: bool

    @property
    def rest(self) -> Axes:
        """The axes that are not indexed."""
        return tuple(axis for dim, axis in enumerate(self.x) if dim not in self.dims)

    @property
    def at(self) -> int:
        """Where in the result the indices' own axes stand."""
        first, last = self.dims[0], self.dims[-1]
        return first if self.dims == tuple(range(first, last + 1)) else 0

    def axes(self, numbers: Axes | None = None) -> Axes:
        """The axes of the result."""
        own = self.numbers if numbers is None else numbers
        return (*self.rest[: self.at], *own, *self.rest[self.at :])


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
