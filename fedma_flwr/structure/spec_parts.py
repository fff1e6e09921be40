"""What a spec consists of, and what follows from its parts alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fedma_flwr.structure.axes import AxisExpression
from fedma_flwr.structure.state_dict_names import named_variances
from fedma_flwr.structure.unit_groups import UnitGroup


@dataclass(frozen=True, init=False)
class SpecParts:
    """The parts of a `PermutationSpec`, which documents them."""

    groups: Mapping[str, UnitGroup]
    axes: Mapping[str, tuple[AxisExpression, ...]]
    outputs: Mapping[str, int]
    statistics: tuple[str, ...]
    head: tuple[str, ...]
    pinned: Mapping[str, str]
    variances: Mapping[str, str]
    directions: Mapping[str, int]

    @property
    def sizes(self) -> dict[str, int]:
        """Width of every group in the initial model."""
        return {name: group.size for name, group in self.groups.items()}

    @property
    def fixed_sizes(self) -> dict[str, int]:
        """The same of the groups that cannot grow."""
        return {name: group.size for name, group in self.groups.items() if not group.growable}

    def default_head(self) -> tuple[str, ...]:
        """The tensors whose output axis is fixed."""
        return tuple(name for name in self.axes if not self.output_groups(name))

    def default_variances(self) -> dict[str, str]:
        """The running variances, with their means, that torch's own names tell."""
        return named_variances(self.axes, self.statistics)

    def output_axis(self, tensor: str) -> int:
        """Index of the axis along which a tensor's units (or outputs) lie."""
        return self.outputs.get(tensor, 0)

    def output_groups(self, tensor: str) -> frozenset[str]:
        """Groups on the output axis of a tensor; empty for the head and for fixed tensors."""
        axes = self.axes[tensor]
        return axes[self.output_axis(tensor)].groups if axes else frozenset()

    def input_groups(self, tensor: str) -> frozenset[str]:
        """Groups on all axes of a tensor but its output axis."""
        others = (a for i, a in enumerate(self.axes[tensor]) if i != self.output_axis(tensor))
        return frozenset().union(*(axis.groups for axis in others))

    def tensor_groups(self, tensor: str) -> frozenset[str]:
        """Groups on any axis of a tensor."""
        return frozenset().union(*(axis.groups for axis in self.axes[tensor]))

    def matched_share(self) -> float:
        """Share of all entries of the state dict, from 0 to 1, whose tensors have a group."""
        sizes = self.sizes
        entries = {
            name: math.prod(axis.size(sizes) for axis in axes) for name, axes in self.axes.items()
        }
        matched = sum(count for name, count in entries.items() if self.tensor_groups(name))
        return matched / max(sum(entries.values()), 1)

    def describe(self, tensor: str) -> str:
        """The axis expressions of one tensor, separated by commas."""
        return ", ".join(str(axis) for axis in self.axes[tensor])
