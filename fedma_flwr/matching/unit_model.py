"""The Gaussian model of the units, given or estimated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .arrays import Floats, Integers
from .gain import Gain, ScalarGain, VectorGain
from .global_units import GlobalUnits


@dataclass(frozen=True, eq=False)
class UnitModel:
    """The Gaussian model of the units.

    Parameters
    ----------
    local, prior : float or float64 array, shape (D,)
        The variance of a local unit around its global unit, and of the global units.
    mean : float64 array, shape (D,)
        The mean of the global units.
    log_determinant : bool
        Whether the gain has the marginal likelihood's log-determinant terms.
    """

    local: float | Floats
    prior: float | Floats
    mean: Floats
    log_determinant: bool

    def gain(self, centre: Floats) -> Gain:
        """Return the model's gain for rows from which ``centre`` was subtracted."""
        mean = self.mean - centre
        if isinstance(self.local, float) and isinstance(self.prior, float):
            return ScalarGain(self.local, self.prior, mean, self.log_determinant)
        local, prior = (np.broadcast_to(v, mean.shape) for v in (self.local, self.prior))
        return VectorGain(local.copy(), prior.copy(), mean, self.log_determinant)

    def posterior(self, sums: Floats, popularity: Integers) -> tuple[Floats, Floats]:
        """Return the numerators g_i, (L, D), and precisions S_i, (L, D), from members' sums."""
        precision = 1 / self.prior + popularity[:, None] / self.local
        return self.mean / self.prior + sums / self.local, np.broadcast_to(precision, sums.shape)


def estimate(global_units: GlobalUnits, centre: Floats, log_determinant: bool) -> UnitModel:
    """Estimate mean and variances, per dimension, from a grouping (SPAHM's moments).

    Both variances are at least 1e-10, as in the reference code.
    """
    popularity = global_units.popularity[global_units.numbering][:, None]
    width, members = len(popularity), int(popularity.sum())
    sums = global_units.sums[global_units.index(global_units.numbering)].cpu().numpy()
    clients = range(len(global_units.slots))
    squares = sum((global_units.rows(client) ** 2).sum(0).cpu().numpy() for client in clients)
    means = sums / popularity
    mean = means.mean(0)
    local = (squares - (sums * means).sum(0)) / max(members - width, 1)
    local = np.maximum(local, 1e-10)
    prior = ((means - mean) ** 2).mean(0) - local * (1 / popularity).sum() / width
    return UnitModel(local, np.maximum(prior, 1e-10), mean + centre, log_determinant)
