"""The worked examples of the docstrings."""

import doctest

import numpy as np
import pytest

from fedma_flwr.matching import (
    assignment,
    bbp_map,
    certificate,
    identity_matching,
    matcher,
    saved_matching,
)

MODULES = [assignment, bbp_map, certificate, identity_matching, matcher, saved_matching]


@pytest.mark.parametrize("module", MODULES)
def test_worked_examples(module):
    outcome = doctest.testmod(module, extraglobs={"np": np})
    assert outcome.attempted > 0
    assert outcome.failed == 0
