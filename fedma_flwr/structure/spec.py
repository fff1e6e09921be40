"""`PermutationSpec`: the unit groups of a model, as data.

The matching side of FedMA depends on a spec alone and never sees an ``nn.Module``. A spec can be
written by hand, built for sequential networks (`sequential_spec`), printed and sent as JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from torch import Tensor

from fedma_flwr.structure import spec_text
from fedma_flwr.structure.axes import AxisExpression, SpecError, as_axes
from fedma_flwr.structure.spec_checks import check_parts
from fedma_flwr.structure.spec_parts import SpecParts
from fedma_flwr.structure.unit_groups import UnitGroup, as_group
from fedma_flwr.structure.unit_selection import check_units, place_units, take_units
from fedma_flwr.structure.widths import solve_widths, widths_of_units

StateDict = Mapping[str, Tensor]
_LONGEST_KEPT = 2**20  # characters: whoever sends longer texts does not fill the memory with them


@dataclass(frozen=True, init=False)
class PermutationSpec(SpecParts):
    """The groups of a model and, for every axis of every state-dict tensor, its axis expression.

    Parameters
    ----------
    groups : mapping of str to (UnitGroup or int)
        The groups in forward order, with their sizes.
    axes : mapping of str to (str or sequence of AxisExpression)
        For every tensor of the state dict one expression an axis, as text separated by commas
        (``"conv2, conv1, 5, 5"``; ``""`` for a tensor without axes) or as objects.
    outputs : mapping of str to int, optional
        The output axis of each tensor whose output axis is not axis 0 (1 for an embedding or a
        transposed convolution).
    statistics : sequence of str, optional
        Tensors that follow their units but say nothing about them when units are matched
        (running means and variances).
    head : sequence of str or None, optional
        Tensors that carry the model's output. Default: all whose output axis is fixed. None: there
        are none, the output's tensors are not among these.
    pinned : mapping of str to str, optional
        For axes that could not be permuted (``"fc.weight[1]"``), why not.
    variances : mapping of str to str, optional
        For every running variance among `statistics` the running mean that belongs to it.
        Default: those that are named as in torch's own layers (`state_dict_names`).
    directions : mapping of str to int, optional
        Tensors of which only the direction counts, as in weight normalisation, and the axis along
        which each has one. A unit that a client lacks has 1 there: zeros have no direction.

    Raises
    ------
    SpecError
        If the parts do not fit together; the message names the tensor or group.

    Examples
    --------
    >>> spec = PermutationSpec(
    ...     groups={"hidden": 3},
    ...     axes={"a.weight": "hidden, 2", "a.bias": "hidden", "b.weight": "1, hidden"},
    ... )
    >>> spec.shapes({"hidden": 4})["a.weight"]
    (4, 2)
    >>> spec.head
    ('b.weight',)
    """

    def __init__(
        self,
        groups: Mapping[str, UnitGroup | int],
        axes: Mapping[str, str | Sequence[AxisExpression]],
        outputs: Mapping[str, int] | None = None,
        statistics: Sequence[str] = (),
        head: Sequence[str] | None = (),
        *,
        pinned: Mapping[str, str] | None = None,
        variances: Mapping[str, str] | None = None,
        directions: Mapping[str, int] | None = None,
    ) -> None:
        parts = {
            "groups": MappingProxyType({name: as_group(size) for name, size in groups.items()}),
            "axes": MappingProxyType({name: as_axes(text) for name, text in axes.items()}),
            "outputs": MappingProxyType(dict(outputs or {})),
            "statistics": tuple(statistics),
            "head": tuple(head or ()),
            "pinned": MappingProxyType(dict(pinned or {})),
            "directions": MappingProxyType(dict(directions or {})),
        }
        for name, value in parts.items():
            object.__setattr__(self, name, value)
        pairs = SpecParts.default_variances(self) if variances is None else dict(variances)
        object.__setattr__(self, "variances", MappingProxyType(pairs))
        check_parts(self)
        if head is not None:
            object.__setattr__(self, "head", self.head or SpecParts.default_head(self))

    def shapes(self, widths: Mapping[str, int] | None = None) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor for the given widths (groups left out keep their size)."""
        full = {**self.sizes, **(widths or {})}
        return {name: tuple(a.size(full) for a in axes) for name, axes in self.axes.items()}

    def widths(
        self, state_dict: StateDict, known: Mapping[str, int] | None = None
    ) -> dict[str, int]:
        """Width of every group that the shapes of the given tensors determine.

        Parameters
        ----------
        state_dict : mapping of str to Tensor
            Some or all tensors of a model.
        known : mapping of str to int, optional
            Widths that are known already; the tensors must agree with them.

        Raises
        ------
        SpecError
            If a shape contradicts the spec; the message names the tensor and both shapes.
        """
        return solve_widths(self.axes, self.sizes, state_dict, known, self.fixed_sizes)

    def check(self, state_dict: StateDict, widths: Mapping[str, int] | None = None) -> None:
        """Refuse a state dict that lacks tensors, has others, or has other shapes.

        Parameters
        ----------
        state_dict : mapping of str to Tensor
            All tensors of a model.
        widths : mapping of str to int, optional
            The widths that it must have. Default: any that are consistent.

        Raises
        ------
        SpecError
            Names the first tensor that does not fit, its shape and the expected shape.
        """
        if missing := [name for name in self.axes if name not in state_dict]:
            raise SpecError(f"The state dict lacks tensors that the spec describes: {missing}.")
        if extra := [name for name in state_dict if name not in self.axes]:
            raise SpecError(f"The state dict has tensors that the spec does not describe: {extra}.")
        self.widths(state_dict, known=widths)

    def permute(
        self, state_dict: StateDict, permutations: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Reorder units: new unit ``i`` of a group is old unit ``permutation[i]``.

        Parameters
        ----------
        state_dict : mapping of str to Tensor
            Some or all tensors of a model.
        permutations : mapping of str to Tensor
            A permutation of ``range(width)`` for each group to reorder.

        Returns
        -------
        dict of str to Tensor
            New tensors of the same shapes: the same function, with its units in another order.

        Raises
        ------
        SpecError
            If a permutation does not fit its group.
        """
        widths = {**self.sizes, **self.widths(state_dict)}
        check_units("permutations", permutations, widths)
        for group, permutation in permutations.items():
            if len(permutation) != widths[group]:
                raise SpecError(
                    f"permutations[{group!r}] has {len(permutation)} units; the group has "
                    f"{widths[group]}."
                )
        return self.select(state_dict, permutations)

    def select(
        self,
        state_dict: StateDict,
        selection: Mapping[str, Tensor],
        known: Mapping[str, int] | None = None,
    ) -> dict[str, Tensor]:
        """Take the given units of each group, in the given order: a client's local model.

        Parameters
        ----------
        state_dict : mapping of str to Tensor
            Tensors at the global widths.
        selection : mapping of str to Tensor
            For each group (n,) global unit numbers; groups left out keep all units.
        known : mapping of str to int, optional
            Global widths that these tensors may not tell: of two groups that share an axis.

        Returns
        -------
        dict of str to Tensor
            New tensors, ``n`` units wide along every selected group.
        """
        widths = {**self.sizes, **(known or {}), **self.widths(state_dict, known)}
        units = check_units("selection", selection, widths)
        return {n: take_units(t, self.axes[n], units, widths) for n, t in state_dict.items()}

    def expand(
        self,
        state_dict: StateDict,
        assignments: Mapping[str, Tensor],
        widths: Mapping[str, int],
    ) -> dict[str, Tensor]:
        """Put local units where their assignment says; zeros for units that the client lacks.

        Parameters
        ----------
        state_dict : mapping of str to Tensor
            Tensors at the client's widths.
        assignments : mapping of str to Tensor
            For each group to expand (n,) global unit numbers of the client's units.
        widths : mapping of str to int
            The global width of each group to expand.

        Returns
        -------
        dict of str to Tensor
            New tensors at the global widths. Running variances and directions are padded with 1.

        Raises
        ------
        SpecError
            If an assignment has not as many units as the tensors. A group that none of them has
            may have any number.
        """
        places = {group: widths[group] for group in assignments}
        units = check_units("assignments", assignments, {**self.sizes, **places})
        own = {group: len(index) for group, index in units.items()}
        local = widths_of_units(self.axes, self.sizes, state_dict, own, self.fixed_sizes)
        wide = {**self.sizes, **local, **places}
        return {
            name: place_units(tensor, self.axes[name], units, wide, self._paddings(name))
            for name, tensor in state_dict.items()
        }

    def padding(self, tensor: str) -> float:
        """Value of a tensor at units that a client lacks: 1 for running variances, else 0."""
        return 1.0 if tensor in self.variances else 0.0

    def _paddings(self, tensor: str) -> list[float]:
        """What stands along each axis of a tensor at units that a client lacks."""
        along = self.directions.get(tensor)
        usual = self.padding(tensor)
        return [1.0 if dim == along else usual for dim in range(len(self.axes[tensor]))]

    def to_json(self) -> str:
        """The spec as compact JSON."""
        if "_json" not in vars(self):  # nothing in a spec changes
            object.__setattr__(self, "_json", spec_text.to_json(self))
        return str(vars(self)["_json"])

    @classmethod
    def from_json(cls, text: str) -> PermutationSpec:
        """Read what `to_json` wrote; the same text is parsed once per process.

        Raises
        ------
        SpecError
            If the text is no spec.
        """
        if cls is PermutationSpec and isinstance(text, str) and len(text) <= _LONGEST_KEPT:
            return _parsed(text)
        return cls._parse(text)

    @classmethod
    def _parse(cls, text: str) -> PermutationSpec:
        parts = spec_text.parse_json(text)
        try:
            groups = {name: UnitGroup(**group) for name, group in parts.pop("groups").items()}
            return cls(groups=groups, **parts)
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise SpecError(f"This is no permutation spec in JSON: {error}.") from error

    def __reduce__(self) -> tuple[Callable[[str], PermutationSpec], tuple[str]]:
        # Read-only mappings cannot be copied or pickled; the JSON says all that a spec says.
        return PermutationSpec.from_json, (self.to_json(),)

    def __str__(self) -> str:
        return spec_text.table(self)


@lru_cache(maxsize=16)
def _parsed(text: str) -> PermutationSpec:
    """A spec that all who have its text may share: nothing in it changes."""
    return PermutationSpec._parse(text)
