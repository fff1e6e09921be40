"""Units of any size are matched, or refused by their client."""

import numpy as np
import pytest

from fedma_flwr.matching import BBPMAP


def units(size):
    draw = np.random.default_rng(0).normal
    return [draw(size=(3, 10)), draw(size=(3, 10)) * size]


@pytest.mark.parametrize("size", [1e160, 1e200, 1e307])
def test_what_is_too_large_is_refused_by_its_client(size):
    with pytest.raises(ValueError, match=r"client 1, .*divide all clients' units"):
        BBPMAP().match(units(size))


@pytest.mark.parametrize("size", [1e-300, 1e-160, 1e-80, 1e-45, 1e30, 1e65])
def test_the_rest_is_matched(size):
    for own in (units(size), [u * size for u in units(1.0)]):
        matching = BBPMAP().match(own)
        assert np.isfinite(matching.units).all()
