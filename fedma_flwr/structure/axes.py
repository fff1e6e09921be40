"""Axis expressions: which units stand where along one axis of a tensor.

An axis expression is a concatenation of products of factors; a factor is a unit group (by name) or
a fixed size. ``"conv2 x 16"`` is the input axis of a linear layer after ``flatten`` of 4x4 maps: 16
consecutive positions for each unit of ``conv2``. ``"h + h + h + h"`` is the gate axis of an LSTM.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

Factor = str | int


class SpecError(ValueError):
    """A spec is malformed, or does not fit the tensors or the model it was used with."""


class UnsupportedModelError(SpecError):
    """No spec can be derived for a model; the message says what to do instead."""


@dataclass(frozen=True)
class AxisExpression:
    """The meaning of one tensor axis.

    Parameters
    ----------
    terms : tuple of tuple of (str or int)
        The concatenated terms; each term is a product of factors, slowest-varying first.

    Examples
    --------
    >>> axis = AxisExpression.parse("conv2 x 16")
    >>> axis.size({"conv2": 50})
    800
    >>> AxisExpression.parse("h + h").positions({"h": torch.tensor([2, 0])}, {"h": 3}).tolist()
    [2, 0, 5, 3]
    """

    terms: tuple[tuple[Factor, ...], ...]

    def __post_init__(self) -> None:
        if not self.terms or not all(self.terms):
            raise SpecError("An axis expression needs at least one factor in every term.")
        for factor in self.factors:
            _check_factor(factor)

    @classmethod
    def parse(cls, text: str) -> AxisExpression:
        """Read an expression such as ``"conv2 x 16"`` or ``"h + h + h + h"``.

        Raises
        ------
        SpecError
            If the text is no axis expression.
        """
        return _parse(text)

    @cached_property
    def factors(self) -> tuple[Factor, ...]:
        """All factors, in the order in which they are written."""
        return tuple(factor for term in self.terms for factor in term)

    @cached_property
    def groups(self) -> frozenset[str]:
        """The unit groups on this axis."""
        return frozenset(factor for factor in self.factors if isinstance(factor, str))

    def size(self, widths: Mapping[str, int]) -> int:
        """Length of the axis for the given group widths."""
        return sum(math.prod(_width(factor, widths) for factor in term) for term in self.terms)

    def positions(self, units: Mapping[str, Tensor], widths: Mapping[str, int]) -> Tensor:
        """Where the given units of every group stand along the axis.

        Parameters
        ----------
        units : mapping of str to Tensor
            For each group a (n,) tensor of unit numbers; a group that is missing keeps all its
            units in order.
        widths : mapping of str to int
            Width of every group of the axis that the positions refer to.

        Returns
        -------
        Tensor
            int64, one position for each place of the axis that holds the given units.
        """
        offset, parts = 0, []
        for term in self.terms:
            index = torch.zeros(1, dtype=torch.int64)
            for factor in term:
                width = _width(factor, widths)
                chosen = units.get(factor) if isinstance(factor, str) else None
                chosen = torch.arange(width) if chosen is None else chosen
                index = (index[:, None] * width + chosen[None, :]).reshape(-1)
            parts.append(index + offset)
            offset += math.prod(_width(factor, widths) for factor in term)
        return torch.cat(parts)

    def __str__(self) -> str:
        return " + ".join(" x ".join(str(factor) for factor in term) for term in self.terms)


def as_axes(axes: str | Sequence[AxisExpression]) -> tuple[AxisExpression, ...]:
    """The axes of a tensor from text such as ``"conv2, conv1, 5, 5"``, or as they are."""
    if isinstance(axes, str):
        return tuple(AxisExpression.parse(part.strip()) for part in axes.split(",") if part.strip())
    return tuple(axes)


def _width(factor: Factor, widths: Mapping[str, int]) -> int:
    return factor if isinstance(factor, int) else widths[factor]


def _check_factor(factor: Factor) -> None:
    if isinstance(factor, int):
        if factor < 0:
            raise SpecError(f"A fixed size must not be negative, but was {factor}.")
    elif not factor or factor.isdigit() or any(sign in factor for sign in " ,+"):
        raise SpecError(
            f"{factor!r} is no name for a unit group: use letters, digits, '.', '_' or '-', "
            "not only digits."
        )


@lru_cache(maxsize=4096)
def _parse(text: str) -> AxisExpression:
    terms = tuple(
        tuple(_parse_factor(factor, text) for factor in term.strip().split(" x "))
        for term in text.split(" + ")
    )
    return AxisExpression(terms)


def _parse_factor(factor: str, text: str) -> Factor:
    factor = factor.strip()
    if not factor:
        raise SpecError(
            f"{text!r} is no axis expression: write factors joined by ' x ' and terms joined by "
            "' + ', for example 'conv2 x 16' or 'h + h'."
        )
    return int(factor) if factor.isdigit() else factor
