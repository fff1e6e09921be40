"""The head: solved from moments, or the paper's, averaged by class counts (section 2.2)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedma_flwr.averaging.client_update import ClientUpdate
from fedma_flwr.averaging.head_moments import HeadMoments, sum_moments
from fedma_flwr.averaging.ridge_regression import (
    best_scale,
    choose_regularisation,
    left_by,
    newton_step,
    solve_head,
    unexplained_share,
)
from fedma_flwr.averaging.robust import lower_median
from fedma_flwr.structure import LinearHead, PermutationSpec

#: How much of the averaged trained head the solved one is a step from: at first, and the bounds.
FIRST_SHARE, LEAST_SHARE, MOST_SHARE = 0.25, 0.1, 0.6
#: So much more of the targets than regression a step may leave: otherwise regression is taken.
STRAYED = 0.1
#: The same, of what would be best if the trained head were not corrected.
SHARE_OF_BEST = 0.4


@dataclass(frozen=True)
class SolvedHead:
    """What solving gives, each by the tensors' names.

    Parameters
    ----------
    tensors : dict of str to Tensor
        The head, float64.
    local_head : dict of str to Tensor
        The head that local training goes on from; empty if it is another one.
    share_factor : float or None
        What the share that the step began from is to be multiplied by for the next round's.
    unexplained : float
        See `unexplained_share`.
    """

    tensors: dict[str, Tensor]
    local_head: dict[str, Tensor]
    share_factor: float | None = None
    unexplained: float = 1.0


@dataclass(frozen=True)
class HeadSolver:
    """How the head is solved from the clients' moments.

    Parameters
    ----------
    head : LinearHead
        The layer.
    regularisation : float, optional (default: None)
        See `solve_head`.
    scale : float (default: 10.0)
        What the outputs, which regression puts between 0 and 1, are multiplied by. Decisions do
        not depend on it, but probabilities do: 8 to 16 was best for digits, 10 lies between. Where
        targets are values the outputs stay what they are.
    start_norm : float (default: 0.0)
        Frobenius norm of the head that local training goes on from, times that of a new linear
        layer. It is the solved head on a scale of its own: the solved heads of LeNet's first rounds
        are large, and enlarged tenfold they destroy the layers below. 0: it is another head.
    steps_from_trained : bool (default: False)
        Whether the solved head is a step from a share of the averaged trained head, Newton's with
        a bound on the curvature (see `newton_step`). If not, it is one from a head of zeros, which
        is regression.
    """

    head: LinearHead
    regularisation: float | None = None
    scale: float = 10.0
    start_norm: float = 0.0
    steps_from_trained: bool = False

    def reference(self, averaged: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
        """The head that the step starts from; empty if it is a head of zeros."""
        if not self.steps_from_trained:
            return {}
        return {name: share * tensor for name, tensor in averaged.items()}

    def solve(
        self,
        spec: PermutationSpec,
        updates: Sequence[ClientUpdate],
        widths: Mapping[str, int],
        reference: Mapping[str, Tensor],
    ) -> SolvedHead:
        """The head's tensors, float64, from moments weighed by the clients' examples.

        Parameters
        ----------
        spec : PermutationSpec
            The model's spec.
        updates : sequence of ClientUpdate
            With moments.
        widths : mapping of str to int
            The global width of every group.
        reference : mapping of str to Tensor
            The head that clients were sent; empty: zeros.

        Returns
        -------
        SolvedHead
        """
        moments = [update.moments for update in updates if update.moments is not None]
        total = sum_moments(moments, [update.examples for update in updates])
        positions = lower_median([own.examples for own in moments])
        return self.solve_total(total, spec.shapes(widths)[self.head.weight], reference, positions)

    def solve_total(
        self,
        total: HeadMoments,
        shape: Sequence[int],
        reference: Mapping[str, Tensor],
        positions: float,
    ) -> SolvedHead:
        """The head's tensors from the moments of all clients together.

        Parameters
        ----------
        total : HeadMoments
            With as many examples as clients have.
        shape : sequence of int
            Of the weight.
        reference : mapping of str to Tensor
            As for `solve`.
        positions : float
            Rows that an example has.
        """
        bias, strength = self.head.bias is not None, self.regularisation
        if strength is None:
            strength = choose_regularisation(total, bias=bias, positions=positions)
        regression = solve_head(total, bias=bias, regularisation=strength)
        plain = self._named(regression, shape)
        values = total.squares is not None  # they mean what they are, on no other scale
        solved = plain if values else {n: self.scale * tensor for n, tensor in plain.items()}
        if total.expected is None:  # of a client, or because nobody was asked
            reference = {}
        if reference:
            step = self._named(newton_step(total, bias=bias, regularisation=strength), shape)
            stepped = {name: self.scale * step[name] + reference[name] for name in step}
            if self._left(total, stepped) < self._left(total, plain) + STRAYED:
                solved = stepped
        start = self._start_scale(plain[self.head.weight]) if self.start_norm else 0.0
        # Of values the solved head is large, and would spoil the layers below: the trained ones'
        # average takes its place, if there is one.
        if values:
            start = 0.0 if self.steps_from_trained else min(start, 1.0)
        local_head = {name: start * tensor for name, tensor in plain.items()} if start else {}
        factor = self._share_factor(total, reference) if reference else None
        return SolvedHead(solved, local_head, factor, unexplained_share(total, *regression))

    def _share_factor(self, total: HeadMoments, reference: Mapping[str, Tensor]) -> float:
        """`SHARE_OF_BEST` of what the reference head times would have the least cross-entropy."""
        parts = [reference[self.head.weight].flatten(1)]
        if self.head.bias is not None:
            parts.append(reference[self.head.bias][:, None])
        head = torch.cat(parts, 1).to(torch.float64)
        return SHARE_OF_BEST * best_scale(total, head)

    def _left(self, total: HeadMoments, head: Mapping[str, Tensor]) -> float:
        bias = None if self.head.bias is None else head[self.head.bias]
        return left_by(total, head[self.head.weight].flatten(1), bias)

    def _named(self, head: tuple[Tensor, Tensor | None], shape: Sequence[int]) -> dict[str, Tensor]:
        """A weight and a bias by their names in the model."""
        weight, bias = head
        named = {self.head.weight: weight.reshape(*shape)}
        if self.head.bias is not None and bias is not None:
            named[self.head.bias] = bias
        return named

    def _start_scale(self, weight: Tensor) -> float:
        """At most `scale`: small inputs may need a large head."""
        own = float(weight.norm())
        new = math.sqrt(len(weight) / 3)  # the norm of a new layer, uniform up to 1 / sqrt(d)
        return min(self.scale, self.start_norm * new / own) if own else self.scale


def class_weights(
    spec: PermutationSpec, name: str, updates: Sequence[ClientUpdate], *, capped: bool
) -> Tensor | None:
    """What each client's rows of the head weigh: its examples of each class.

    Parameters
    ----------
    spec : PermutationSpec
        The model's spec.
    name : str
        A tensor of the head.
    updates : sequence of J ClientUpdate
        What the clients sent.
    capped : bool
        Whether none may count more examples of a class than is usual; see `cap_counts`.

    Returns
    -------
    Tensor or None
        (J, 1.., outputs, ..1), to be broadcast to the tensor; None unless every client has class
        counts that fit it.
    """
    shape = updates[0].tensors[name].shape
    counts = fitting_counts(updates, shape[spec.output_axis(name)], name) if shape else None
    if counts is None:
        return None
    # A class that nobody has seen says nothing about whom to trust: all clients alike.
    weights = torch.where(counts.sum(0) > 0, counts, torch.ones_like(counts))
    weights = weights.reshape([len(counts), *_along_outputs(spec, name, len(shape))])
    return cap_counts(weights) if capped else weights


def fitting_counts(updates: Sequence[ClientUpdate], outputs: int, name: str = "") -> Tensor | None:
    """Class counts of all clients, (J, outputs), for a tensor; None if one has none that fit."""
    counts = [count for update in updates if (count := update.counts_of(name)) is not None]
    if len(counts) < len(updates) or any(len(count) != outputs for count in counts):
        return None
    return torch.stack([count.to(torch.float64) for count in counts])


def keep_absent_rows(
    spec: PermutationSpec,
    name: str,
    mean: Tensor,
    updates: Sequence[ClientUpdate],
    *,
    before: Tensor,
    known: Tensor,
) -> Tensor:
    """Keep the head's rows of classes of which no client of the cohort has an example.

    Whoever lacks a class only learns to deny it. Without class counts from every client nothing
    is known about classes, and the mean stays what it is.

    Parameters
    ----------
    spec : PermutationSpec
        The model's spec.
    name : str
        A tensor of the head.
    mean : Tensor
        What the cohort's clients average to.
    updates : sequence of ClientUpdate
        What the cohort's clients sent.
    before, known : Tensor
        The tensor of the last global model in the new units, and where it is known; of the shape
        of `mean`.

    Returns
    -------
    Tensor
        In the dtype of `mean`.
    """
    counts = fitting_counts(updates, mean.shape[spec.output_axis(name)], name)
    if counts is None:
        return mean
    absent = (counts.sum(0) == 0).reshape(_along_outputs(spec, name, mean.dim()))
    return torch.where(absent & known, before.to(mean.dtype), mean)


def _along_outputs(spec: PermutationSpec, name: str, dims: int) -> list[int]:
    """The shape that lays one number an output along a tensor's output axis."""
    return [-1 if dim == spec.output_axis(name) else 1 for dim in range(dims)]


def cap_counts(counts: Tensor) -> Tensor:
    """Class counts of which none exceeds the median of the clients that have the class.

    Whoever claims to have all of a class would have its way with it otherwise.

    Parameters
    ----------
    counts : Tensor
        (J, ...), from 0 up.
    """
    ranked = counts.sort(dim=0).values
    absent = (counts <= 0).sum(0, keepdim=True)
    middle = absent + (len(counts) - absent - 1).clamp_min(0) // 2
    return torch.minimum(counts, ranked.gather(0, middle.clamp_max(len(counts) - 1)))
