"""The unit model and the prices that a matcher's settings and the data give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .arrays import Floats
from .calibration import calibrate
from .pricing import Pricing
from .unit_model import UnitModel


def choose_model(
    units: Sequence[Floats],
    mean: Floats,
    variances: tuple[float | None, float | None],
    pricing: Pricing,
    log_determinant: bool,
) -> tuple[UnitModel, Pricing]:
    """Return the model of units, and the pricing; both from the data if there are no variances.

    Parameters
    ----------
    units : sequence of float arrays, shapes (L_j, D)
        What variances are calibrated on: all clients', or the anchors'.
    mean : float64 array, shape (D,)
        The prior mean.
    variances : (float or None, float or None)
        The local and the prior variance, both or none.
    pricing : Pricing
        As the settings have it.
    log_determinant : bool
        Whether the gain has these terms where variances are given.
    """
    local, prior = variances
    if local is not None and prior is not None:
        return UnitModel(float(local), float(prior), mean, log_determinant), pricing
    found = calibrate(units, mean, pricing.gamma)
    pricing = replace(pricing, gamma=found.mass, price=found.price)
    if not found.told:
        pricing = replace(pricing, popularity_weight=1.0, popularity_cap=pricing.clients)
    return UnitModel(found.local, found.prior, mean, log_determinant=False), pricing
