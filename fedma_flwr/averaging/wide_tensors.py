"""Clients' tensors at the global widths, made when they are asked for and not kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import overload

import torch
from torch import Tensor

from fedma_flwr.structure import PermutationSpec


@dataclass(frozen=True)
class _Placing:
    """Where the units of a group went; `shapes` are those of its tensors before it."""

    units: Mapping[str, Tensor]
    widths: Mapping[str, int]
    shapes: Mapping[str, Tensor]  # without data


class WideTensors(Mapping[str, Tensor]):
    """One client's tensors at the global widths of all groups matched so far.

    Only what the client sent is held, which may lie on disk: no cohort's tensors are there twice.

    Parameters
    ----------
    spec : PermutationSpec
        The model's spec.
    tensors : mapping of str to Tensor
        What the client sent.

    Examples
    --------
    >>> wide = WideTensors(spec, update.tensors)
    >>> wide.place("conv1", torch.tensor([3, 0, 1]), {"conv1": 5})
    >>> wide["conv1.bias"].shape  # zeros where the client has no unit
    torch.Size([5])
    """

    def __init__(self, spec: PermutationSpec, tensors: Mapping[str, Tensor]) -> None:
        self._spec, self._sent = spec, tensors
        self._placings: list[_Placing] = []
        self._shapes = {n: torch.empty(t.shape, device="meta") for n, t in tensors.items()}

    def __len__(self) -> int:
        return len(self._sent)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sent)

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._sent[name]
        for placing in self._placings:
            if name in placing.shapes:
                touched = {**placing.shapes, name: tensor}
                tensor = self._spec.expand(touched, placing.units, placing.widths)[name]
        return tensor

    def width(self, group: str, names: Sequence[str], known: Mapping[str, int]) -> int:
        """How many units of a group these tensors have; see `PermutationSpec.widths`."""
        return self._spec.widths({name: self._shapes[name] for name in names}, known)[group]

    def place(self, group: str, units: Tensor, widths: Mapping[str, int]) -> None:
        """Put the units of a group where they belong.

        Parameters
        ----------
        group : str
            The group.
        units : Tensor
            (n,) the number that each of them gets.
        widths : mapping of str to int
            Global widths, the group's among them.
        """
        if len(units) == widths[group] and torch.equal(units, torch.arange(len(units))):
            return  # they are there already
        spec = self._spec
        touched = {n: t for n, t in self._shapes.items() if group in spec.tensor_groups(n)}
        self._placings.append(_Placing({group: units}, dict(widths), touched))
        self._shapes.update(spec.expand(touched, {group: units}, widths))


class OnDemand(Sequence[Tensor]):
    """Tensors of several clients, each made when it is asked for and not kept.

    Parameters
    ----------
    make : sequence of callable
        Each returns a client's tensor.
    """

    def __init__(self, make: Sequence[Callable[[], Tensor]]) -> None:
        self._make = make

    def __len__(self) -> int:
        return len(self._make)

    @overload
    def __getitem__(self, client: int) -> Tensor: ...

    @overload
    def __getitem__(self, client: slice) -> list[Tensor]: ...

    def __getitem__(self, client: int | slice) -> Tensor | list[Tensor]:
        if isinstance(client, slice):
            return [make() for make in self._make[client]]
        return self._make[client]()


def of_each(clients: Sequence[Mapping[str, Tensor]], name: str) -> Sequence[Tensor]:
    """One tensor of each client, made when it is asked for."""
    return OnDemand([partial(tensors.__getitem__, name) for tensors in clients])
