"""Variances from the data, so that the units' scale does not matter."""

from __future__ import annotations

from collections.abc import Sequence

from .result import Floats


def calibrate(units: Sequence[Floats], mean: Floats) -> tuple[float, float]:
    """Return a local and a prior variance, both the units' mean squared deviation."""
    total = sum(float(((array - mean) ** 2).sum()) for array in units)
    entries = sum(array.size for array in units)
    variance = total / entries if total > 0 else 1.0
    return variance, variance
