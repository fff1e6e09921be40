"""How much one client may weigh: bounds on the size of what it sends, and on its counts.

A client can send anything finite of the right shape. These bounds keep what it sends on the scale
of what the others send, so that averages, matching and the clients' own training stay finite.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedma_flwr.averaging.client_update import ClientUpdate
from fedma_flwr.averaging.robust import SMALL, lower_median, row_sizes
from fedma_flwr.structure import PermutationSpec

#: No weight of a network that trains is larger; squares, summed over any signature and any number
#: of clients, stay finite in float32.
LARGEST = 1e9
#: Whole numbers up to here are exact in the float64 in which they are averaged.
LARGEST_INTEGER = 2**53
#: Times the bound. Measured: up to 3 where a client's training at a high rate got out of hand;
#: far more if it failed, or if nobody trained.
FAILED = 5.0
_JUST_BELOW = 1 - 1e-6  # of a bound, so that rounding does not lead beyond it


@dataclass(frozen=True)
class Limits:
    """Bounds relative to the cohort.

    Parameters
    ----------
    max_norm_ratio : float (default: 10.0)
        The largest unit of an uploaded tensor may have this times the norm that is usual.
    max_weight_ratio : float (default: 10.0)
        A client's examples, and its class counts together, count for at most this times the
        cohort's median. 1: the hostile tenth of a cohort has a tenth of the weight at most.
    """

    max_norm_ratio: float = 10.0
    max_weight_ratio: float = 10.0

    @classmethod
    def of(cls, max_norm_ratio: float, max_weight_ratio: float | None, *, robust: bool) -> Limits:
        """Limits whose weight ratio, if it is None, suits the average: 10, or 1 if it is robust."""
        default = 1.0 if robust else 10.0
        return cls(max_norm_ratio, default if max_weight_ratio is None else max_weight_ratio)


def oversized(
    spec: PermutationSpec,
    updates: Mapping[int, ClientUpdate],
    model: Mapping[str, Tensor],
    max_norm_ratio: float,
) -> dict[int, str]:
    """Clients with a unit far larger than usual, and the reason in words.

    The size of a tensor is the largest root mean square of its slices along the first axis: of one
    unit's incoming weights, one bias, one class of the head. What is usual is the larger of the
    cohort's median and the size in the last global model; with two clients only, the smaller of
    theirs stands for the median.

    Parameters
    ----------
    spec : PermutationSpec
        The model's spec.
    updates : mapping of int to ClientUpdate
        What the clients sent, by node.
    model : mapping of str to Tensor
        The last global model.
    max_norm_ratio : float
        See `Limits`.

    Returns
    -------
    dict of int to str
        Why a client is refused, by node.
    """
    found: dict[int, str] = {}
    for name, usual, sizes in _usual_sizes(spec, updates, model):
        for node, size in sizes.items():
            if size > max_norm_ratio * usual:
                found.setdefault(
                    node,
                    f"a unit of {name!r} has size {size:.3g} (root mean square); usual is "
                    f"{usual:.3g}, and at most {max_norm_ratio:g} times that (max_norm_ratio)",
                )
    return found


def scaled_to_bounds(
    spec: PermutationSpec,
    updates: Mapping[int, ClientUpdate],
    model: Mapping[str, Tensor],
    max_norm_ratio: float,
) -> dict[int, ClientUpdate]:
    """Updates of a first round, in which units somewhat too large are made as large as allowed.

    From new weights, and at high learning rates, some clients come much further in their first
    training than others: no reason to do without them. Units beyond `FAILED` times the bound are
    left as they are, for `oversized` to find.

    Parameters
    ----------
    spec, updates, model, max_norm_ratio
        As for `oversized`.
    """
    bounded = {node: dict(update.tensors) for node, update in updates.items()}
    for name, usual, sizes in _usual_sizes(spec, updates, model):
        most = max_norm_ratio * usual
        for node, size in sizes.items():
            if most < size <= FAILED * most:
                bounded[node][name] = _cut_rows(spec, name, bounded[node][name], most)
    return {node: replace(u, tensors=bounded[node]) for node, u in updates.items()}


def bound_weights(
    updates: Mapping[int, ClientUpdate], max_weight_ratio: float
) -> dict[int, ClientUpdate]:
    """Updates whose examples and class counts do not exceed the cohort's median by too much.

    Nothing is refused here: a client may well have many examples. Class counts are scaled down
    together, so that a client's classes keep their shares. If most clients have sent class counts
    of one length, the others count as having their examples in all classes alike: one client
    cannot keep the head from being averaged class by class.

    Parameters
    ----------
    updates : mapping of int to ClientUpdate
        What the clients sent, by node.
    max_weight_ratio : float
        See `Limits`.
    """
    most = max_weight_ratio * lower_median([update.examples for update in updates.values()])
    plain = {node: update.class_counts for node, update in updates.items()}
    plain = _bounded_counts(plain, updates, max_weight_ratio)
    heads: dict[int, dict[str, Tensor]] = {node: {} for node in updates}
    for name in sorted({name for update in updates.values() for name in update.head_counts}):
        own = {node: update.head_counts.get(name) for node, update in updates.items()}
        for node, counts in _bounded_counts(own, updates, max_weight_ratio).items():
            if counts is not None:
                heads[node][name] = counts
    return {
        node: replace(
            update,
            examples=min(update.examples, most),
            class_counts=plain[node],
            head_counts=heads[node],
        )
        for node, update in updates.items()
    }


def _bounded_counts(
    counts: Mapping[int, Tensor | None],
    updates: Mapping[int, ClientUpdate],
    max_weight_ratio: float,
) -> dict[int, Tensor | None]:
    """Class counts of one head, scaled down together where they exceed the median by too much."""
    full = _with_counts(counts, updates)
    sums = {node: float(own.sum()) for node, own in full.items() if own is not None}
    most = max_weight_ratio * lower_median(list(sums.values()))
    return {
        node: own * (most / sums[node]) if own is not None and sums[node] > most > 0.0 else own
        for node, own in full.items()
    }


def _with_counts(
    counts: Mapping[int, Tensor | None], updates: Mapping[int, ClientUpdate]
) -> dict[int, Tensor | None]:
    """Even counts for the others, if most have sent counts of one length."""
    lengths = {node: 0 if own is None else len(own) for node, own in counts.items()}
    usual, number = Counter(lengths.values()).most_common(1)[0] if lengths else (0, 0)
    if usual == 0 or 2 * number <= len(lengths):
        return dict(counts)
    return {
        node: own
        if lengths[node] == usual
        else torch.full((usual,), updates[node].examples / usual, dtype=torch.float64)
        for node, own in counts.items()
    }


def _usual_sizes(
    spec: PermutationSpec, updates: Mapping[int, ClientUpdate], model: Mapping[str, Tensor]
) -> Iterator[tuple[str, float, dict[int, float]]]:
    """Of each tensor: its name, the size that is usual, and each client's."""
    for name in next(iter(updates.values())).tensors if updates else ():
        if not model[name].dtype.is_floating_point:
            continue
        sizes = {node: _size(spec, name, u.tensors[name]) for node, u in updates.items()}
        usual = max(lower_median(list(sizes.values())), _size(spec, name, model[name]), SMALL)
        yield name, usual, sizes


def _cut_rows(spec: PermutationSpec, name: str, tensor: Tensor, most: float) -> Tensor:
    """The tensor with rows of at most that size; a variance has the size of its deviation."""
    if name in spec.variances:
        return tensor.clamp_max(most**2 * _JUST_BELOW)
    factors = (most / row_sizes(tensor).clamp_min(SMALL)).clamp_max(1.0) * _JUST_BELOW
    shape = [-1] + [1] * (tensor.dim() - 1) if tensor.dim() else []
    return torch.where(
        factors.reshape(shape) < _JUST_BELOW, tensor * factors.reshape(shape), tensor
    ).to(tensor.dtype)


def _size(spec: PermutationSpec, name: str, tensor: Tensor) -> float:
    if name in spec.variances:
        tensor = tensor.clamp_min(0.0).sqrt()
    return float(row_sizes(tensor).max())
