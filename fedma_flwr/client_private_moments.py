"""The moments of a head's inputs with differential privacy: a Gaussian mechanism."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from flwr.app import ArrayRecord
from torch import Tensor, nn

from fedma_flwr import protocol
from fedma_flwr.averaging.private_moments import (
    add_noise,
    as_moments,
    bounded_rows,
    bounded_sums,
    epsilon_of,
    rho_of,
)
from fedma_flwr.client_moments import find_layer
from fedma_flwr.client_passes import SeenBatch, passes
from fedma_flwr.client_privacy import Accountant, without_opacus
from fedma_flwr.protocol import ClientError

#: Opacus' loaders draw each batch anew: an example may come twice in a pass.
_DRAWN_ANEW = "DPDataLoader"


@dataclass(frozen=True)
class PrivateMoments:
    """Moments that may leave the client, and what they cost.

    Parameters
    ----------
    arrays : ArrayRecord
        For the reply to a head stage.
    rho : float
        Their zero-concentrated differential privacy, with regard to one example more or less.
        Those of several rounds add up.
    """

    arrays: ArrayRecord
    rho: float

    def epsilon(self, delta: float) -> float:
        """Epsilon for a delta between 0 and 1: ``rho + 2 sqrt(rho log(1 / delta))``."""
        if not 0.0 < delta < 1.0:
            raise ClientError(f"delta was {delta!r}; it must be between 0 and 1.")
        return epsilon_of(self.rho, delta)


def private_head_moments(
    model: nn.Module,
    batches: Iterable[tuple[Any, Tensor]],
    *,
    max_norm: float,
    noise_multiplier: float,
    accountant: Accountant | None = None,
    generator: torch.Generator | None = None,
    head: str | None = None,
) -> PrivateMoments:
    """Do as `head_moments` does, with differential privacy.

    Each example's input of the head is scaled down to `max_norm`, if it is longer; Gaussian noise
    is added to the sums, and they are made moments again. ``num-examples`` and other metrics of
    the reply are not protected by it.

    Parameters
    ----------
    model : nn.Module
        What `load_model` returned, or Opacus' wrapper around it.
    batches : iterable of (inputs, labels)
        As for `head_moments`, with **each example once**: your own loader, none of Opacus'.
    max_norm : float
        Above 0, and chosen without a look at the data: about the usual norm of the head's inputs.
    noise_multiplier : float
        Above 0: standard deviation of the noise over what one example can change.
    accountant : Accountant, optional
        One of Opacus' (``PrivacyEngine().accountant``); it is told of one step with sample rate 1.
    generator : torch.Generator, optional
        On the CPU; for tests. Default: a new one, of a seed that nobody can know.
    head : str, optional
        The head's path in the model. None: that of the head stage.

    Returns
    -------
    PrivateMoments

    Raises
    ------
    ClientError
        Outside a head stage without `head`, without an example, or for an argument out of range.

    Examples
    --------
    In a train function, before any training:

    >>> if Stage.from_message(message).solves_head:
    ...     moments = private_head_moments(model, loader, max_norm=8.0, noise_multiplier=2.0)
    ...     metrics = MetricRecord({"num-examples": len(data), "rho": moments.rho})
    ...     content = RecordDict({"arrays": moments.arrays, "metrics": metrics})
    ...     return Message(content, reply_to=message)
    """
    _check(batches, max_norm=max_norm, noise_multiplier=noise_multiplier)
    model = without_opacus(model)
    layer = find_layer("private_head_moments", model, head)
    gram = cross = torch.zeros(0)
    for seen in passes(model, layer, batches):
        weights = _weights(seen)  # first: it refuses labels that do not fit
        rows = bounded_rows(seen.features[seen.kept], max_norm)
        more = bounded_sums(rows, seen.targets, weights)
        gram, cross = more if not len(gram) else (gram + more[0], cross + more[1])
    if not len(gram):
        raise ClientError("private_head_moments: there is no example in `batches`.")
    noise = generator or torch.Generator().manual_seed(secrets.randbits(63))
    moments = as_moments(*add_noise(gram, cross, noise_multiplier, noise), max_norm)
    if accountant is not None:
        accountant.step(noise_multiplier=noise_multiplier, sample_rate=1.0)
    arrays = {protocol.GRAM_KEY: moments.gram, protocol.CROSS_KEY: moments.cross}
    return PrivateMoments(protocol.to_arrays(arrays), rho_of(noise_multiplier))


def _weights(seen: SeenBatch) -> Tensor:
    """What each row that counts weighs: an example counts as the mean of its rows."""
    rows, items = len(seen.features), seen.items
    if len(seen.kept) != rows or rows % max(items, 1):
        raise ClientError(
            f"private_head_moments: {len(seen.kept)} labels, but the head has {rows} inputs in "
            'this batch. Each input needs its own label; else give the strategy head="trained".'
        )
    by_item = seen.kept.cpu().reshape(items, -1).to(torch.float64)
    shares = by_item / by_item.sum(1, keepdim=True).clamp_min(1.0)
    return shares.reshape(-1)[seen.kept.cpu()]


def _check(batches: object, **above_zero: float) -> None:
    for name, value in above_zero.items():
        if not isinstance(value, int | float) or not 0.0 < value < float("inf"):
            raise ClientError(
                f"private_head_moments: {name} was {value!r}; it must be a number above 0."
            )
    if type(batches).__name__ == _DRAWN_ANEW:
        raise ClientError(
            "private_head_moments: Opacus' loader draws its batches anew, so that an example may "
            "come twice, or not at all. Pass the loader that you gave to `make_private`."
        )
