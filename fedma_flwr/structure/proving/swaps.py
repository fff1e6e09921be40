"""Some units of a group in another order in one tensor alone, or all of them alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from fedma_flwr.structure.proving.model_in_proof import ModelInProof, Outputs, relative_change

Pair = tuple[str, str]  # group, tensor
# Relative change that counts as one: far above what `TOLERANCE` would let pass as none.
THRESHOLD = 1e-7
# Units of a group that are rotated: cheap in large tensors.
_ROTATED = 16
# Part of the largest derivative of a tensor that rounding errors may come to.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Move:
    """Some units of a group rotated among themselves on one axis of one tensor.

    Parameters
    ----------
    tensor : Tensor
        The model's own; it is written to.
    dim : int
        The axis.
    places, sources : Tensor
        (n,) positions on it, and which come to stand there.
    first : Tensor
        (n,) the positions of the first of these units, once for each of them.
    makes : bool
        Whether the tensor makes units along this axis.
    """

    tensor: Tensor
    dim: int
    places: Tensor
    sources: Tensor
    first: Tensor
    makes: bool

    def rotate(self) -> None:
        """Put every unit where the one before it stands."""
        self._write(self.tensor.index_select(self.dim, self.sources))

    def rotate_back(self) -> None:
        """Undo `rotate`."""
        back = self.tensor.index_select(self.dim, self.places)
        self.tensor.index_copy_(self.dim, self.sources, back)

    @contextmanager
    def alike(self) -> Iterator[None]:
        """Within this context, the units are all like the first one."""
        before = self.tensor.index_select(self.dim, self.places)
        self._write(self.tensor.index_select(self.dim, self.first))
        try:
            yield
        finally:
            self._write(before)

    def _write(self, values: Tensor) -> None:
        self.tensor.index_copy_(self.dim, self.places, values)

    def slope(self, gradient: Tensor) -> float:
        """Derivative of the output towards the rotated tensor."""
        old, new = (self.tensor.index_select(self.dim, at) for at in (self.places, self.sources))
        return abs(float((gradient.index_select(self.dim, self.places) * (new - old)).sum()))

    def tells_apart(self, gradient: Tensor) -> bool:
        """Whether a derivative, taken while the units are alike, differs between them."""
        own, other = (gradient.index_select(self.dim, at) for at in (self.places, self.sources))
        size = float(self.tensor.index_select(self.dim, self.places).abs().mean())
        largest = float((own - other).abs().max()) if own.numel() else 0.0
        return largest > max(THRESHOLD / max(size, THRESHOLD), _ROUNDING * float(own.abs().max()))


@dataclass(frozen=True)
class Swap:
    """A rotation of some units of a group in one tensor: a move for each axis that has them."""

    moves: tuple[Move, ...]

    @classmethod
    def draw(cls, model: ModelInProof, pair: Pair, generator: torch.Generator) -> Swap:
        """Choose the units."""
        group, name = pair
        spec = model.spec
        units = torch.randperm(spec.sizes[group], generator=generator)[:_ROTATED]
        moves = []
        for dim, axis in enumerate(spec.axes[name]):
            if group in axis.groups:
                places, sources, first = (
                    axis.positions({group: order}, spec.sizes)
                    for order in (units, units.roll(1), units[:1].expand(len(units)))
                )
                makes = dim == spec.output_axis(name)
                moves.append(Move(model.tensors[name], dim, places, sources, first, makes))
        return cls(tuple(moves))

    def changes(self, model: ModelInProof, reference: Outputs) -> bool:
        """Whether the output changes when the units are rotated on any one axis alone."""
        return all(change_of([move], model, reference) for move in self.moves)

    def slope(self, gradient: Tensor) -> float:
        """Least derivative of the output towards the tensor rotated on one axis."""
        return min(move.slope(gradient) for move in self.moves)


def change_of(moves: Iterable[Move], model: ModelInProof, reference: Outputs) -> bool:
    """Whether the output changes when all these moves are made at once."""
    made = list(moves)
    for move in made:
        move.rotate()
    try:
        return relative_change(model.run(), reference) > THRESHOLD
    finally:
        for move in reversed(made):
            move.rotate_back()
