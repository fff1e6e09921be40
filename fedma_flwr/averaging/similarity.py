"""How alike the units are that were matched: for reports."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedma_flwr.matching import Matching
from fedma_flwr.matching.arrays import Floats

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_MOST_CLIENTS = 32  # that are compared with the others


def similarity_of_matched(units: Sequence[Floats], matching: Matching) -> list[float]:
    """Cosines between matched units, each against the sum of the other clients' in its place.

    Parameters
    ----------
    units : sequence of J float arrays, shapes (L_j, D)
        The clients' signatures, as they were matched.
    matching : Matching
        Where each of them went.

    Returns
    -------
    list of float
        The `QUANTILES` over all units that have company, of at most 32 clients; empty if none has.
    """
    width = len(matching.popularity)
    sums = np.zeros((width, units[0].shape[1]), dtype=np.result_type(np.float32, units[0]))
    held = np.zeros(width, dtype=np.int64)
    for rows, assignment in zip(units, matching.assignments, strict=True):
        sums[assignment] += rows  # no unit twice within a client
        held[assignment] += 1
    cosines = []
    for client in range(min(len(units), _MOST_CLIENTS)):
        rows, assignment = units[client], matching.assignments[client]
        shared = held[assignment] > 1
        own, others = rows[shared], sums[assignment[shared]] - rows[shared]
        sizes = np.linalg.norm(own, axis=1) * np.linalg.norm(others, axis=1)
        products = np.einsum("ij,ij->i", own, others)
        cosines.append(products[sizes > 0] / sizes[sizes > 0])
    found = np.concatenate(cosines)
    if not len(found):
        return []
    return [round(float(value), 4) for value in np.quantile(found, QUANTILES)]
