"""Moments of several widths' features: a narrow client's are about its own model's.

A unit of a narrow model is not the same feature as that unit of the whole model: it has fewer
inputs. So every width has a head of its own, solved from moments of that width's features. Clients
can measure all models that are part of theirs, and both features of one example together tell how
the ones follow from the others. What a narrow client cannot measure is estimated from that:
with the regression ``phi ~ T [psi, 1]`` and what it leaves, ``R``, over the clients that have
measured both, a client's ``S = sum [psi, 1] [psi, 1]^T`` becomes ``T S T^T + n R`` and its
``B = sum y [psi, 1]^T`` becomes ``B T^T``. Where `phi` is a linear function of `psi`, that is
exactly what it would have measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedma_flwr.averaging.head_moments import HeadMoments, sum_moments, upper_triangle

#: Of the regression of one model's features on another's, relative to their mean square.
_RIDGE = 1e-3


@dataclass(frozen=True)
class Measured:
    """What one client has measured.

    Parameters
    ----------
    models : tuple of str
        Names of the models whose heads' inputs were measured: the client's own, then others that
        are part of it.
    moments : HeadMoments
        Of all their inputs together, one model's behind the other's.
    examples : float
        What the client counts for.
    """

    models: tuple[str, ...]
    moments: HeadMoments
    examples: float


@dataclass(frozen=True)
class _Sums:
    """``sum [phi, 1] [phi, 1]^T`` and ``sum y [phi, 1]^T`` of (weighed) examples, float64.

    Where targets are values, ``sum y^2`` too.
    """

    square: Tensor
    cross: Tensor
    squares: Tensor | None = None

    @property
    def rows(self) -> float:
        return float(self.square[-1, -1])

    def plus(self, other: _Sums) -> _Sums:
        both = [s for s in (self.squares, other.squares) if s is not None]
        squares = both[0] + both[1] if len(both) == 2 else None
        return _Sums(self.square + other.square, self.cross + other.cross, squares)

    def moments(self) -> HeadMoments:
        return HeadMoments(upper_triangle(self.square[:-1, :-1]), self.cross, squares=self.squares)


class ModelMoments:
    """Moments of every model's features, over the examples of all clients.

    Parameters
    ----------
    measured : sequence of Measured
        What the clients sent.
    places : mapping of str to Tensor
        By model, the (d,) inputs of the whole model's head that its own head has.
    inputs : int
        Inputs of the whole model's head.
    estimates : bool (default: True)
        Whether what clients have not measured is estimated. Not where some may be hostile: then
        what one width's clients say counts for that width alone.
    """

    def __init__(
        self,
        measured: Sequence[Measured],
        places: Mapping[str, Tensor],
        inputs: int,
        *,
        estimates: bool = True,
    ) -> None:
        self._places, self._inputs, self._estimates = places, inputs, estimates
        self._pools: list[tuple[tuple[str, ...], _Sums]] = []
        for models in dict.fromkeys(own.models for own in measured):
            alike = [own for own in measured if own.models == models]
            total = sum_moments([m.moments for m in alike], [m.examples for m in alike])
            self._pools.append((models, _Sums(total.square(), total.cross, total.squares)))

    def of(self, model: str) -> HeadMoments:
        """The moments of a model's features, estimated for clients that have not measured them."""
        direct = [
            self._block(sums, models, model) for models, sums in self._pools if model in models
        ]
        if not direct:
            return self._from_units(model)
        total = _sum(direct)
        for models, sums in self._pools if self._estimates else ():
            if model not in models and (found := self._estimated(model, models, sums)) is not None:
                total = total.plus(found)
        return total.moments()

    def _columns(self, models: tuple[str, ...], model: str) -> Tensor:
        """Where a model's features, and the 1, stand in joint moments."""
        start = sum(len(self._places[m]) for m in models[: models.index(model)])
        own = torch.arange(start, start + len(self._places[model]))
        return torch.cat([own, torch.tensor([sum(len(self._places[m]) for m in models)])])

    def _block(self, sums: _Sums, models: tuple[str, ...], *wanted: str) -> _Sums:
        """Moments of some of the models that were measured together, in this order."""
        columns = [self._columns(models, model) for model in wanted]
        chosen = torch.cat([*(own[:-1] for own in columns), columns[0][-1:]])
        return _Sums(sums.square[chosen][:, chosen], sums.cross[:, chosen], sums.squares)

    def _estimated(self, model: str, models: tuple[str, ...], sums: _Sums) -> _Sums | None:
        """What clients would have measured of a model; None if nobody has measured both."""
        for known in models:
            both = [
                self._block(pool, others, model, known)
                for others, pool in self._pools
                if model in others and known in others
            ]
            if both:
                size = len(self._places[model])
                return _carried(_sum(both).square, size, self._block(sums, models, known))
        return None

    def _from_units(self, model: str) -> HeadMoments:
        """From whatever narrower or wider models have measured of the same units, on average.

        For models that nobody has measured. Each pair of units counts as if all clients had it.
        """
        size = self._inputs + 1
        square, cross = torch.zeros(size, size, dtype=torch.float64), None
        seen = torch.zeros_like(square)
        for models, sums in self._pools:
            own = self._block(sums, models, models[0])
            at = torch.cat([self._places[models[0]], torch.tensor([self._inputs])])
            square[at[:, None], at] += own.square
            seen[at[:, None], at] += own.rows
            if cross is None:
                cross = torch.zeros(len(own.cross), size, dtype=torch.float64)
            cross[:, at] += own.cross
        if cross is None:
            raise ValueError("moments: nobody has sent any")
        rows = float(seen[-1, -1])
        factors = torch.where(seen > 0, rows / seen.clamp_min(1e-30), 0.0)
        at = torch.cat([self._places[model], torch.tensor([self._inputs])])
        given = [sums.squares for _, sums in self._pools if sums.squares is not None]
        squares = torch.stack(given).sum(0) if given else None
        square, cross = square * factors, cross * factors[-1]
        return _Sums(square[at][:, at], cross[:, at], squares).moments()


def _sum(parts: Sequence[_Sums]) -> _Sums:
    total = parts[0]
    for part in parts[1:]:
        total = total.plus(part)
    return total


def _carried(both: Tensor, size: int, known: _Sums) -> _Sums:
    """Sums over features ``psi``, carried over to ``phi`` by what is known of both.

    Parameters
    ----------
    both : Tensor
        ``sum [phi, psi, 1] [phi, psi, 1]^T`` of other clients.
    size : int
        Numbers of ``phi``.
    known : _Sums
        Of ``[psi, 1]``.
    """
    own, mixed, given = both[:size, :size], both[:size, size:], both[size:, size:].clone()
    inputs = max(len(given) - 1, 1)
    step = _RIDGE * float(given.diagonal()[:-1].sum()) / inputs
    given.diagonal()[:-1].add_(max(step, 1e-30))
    transfer = torch.linalg.solve(given, mixed.T).T  # (size, psi + 1)
    left = (
        own - transfer @ mixed.T - mixed @ transfer.T + transfer @ both[size:, size:] @ transfer.T
    )
    left = left / float(both[-1, -1])
    last = torch.zeros(1, len(given), dtype=torch.float64)
    last[0, -1] = 1.0
    whole = torch.cat([transfer, last])  # of [phi, 1]
    square = whole @ known.square @ whole.T
    square[:size, :size] += known.rows * left
    return _Sums(square, known.cross @ whole.T, known.squares)
