"""How alike matched units are said to be."""

import numpy as np
import pytest

from fedma_flwr.averaging.similarity import similarity_of_matched
from fedma_flwr.matching import IdentityMatching, Matching


def test_units_are_compared_with_the_other_clients_in_their_place():
    """Two clients, two global units in common; each client has one of its own beside."""
    first = np.array([[1.0, 0.0], [0.0, 2.0], [9.0, 9.0]], dtype=np.float32)
    second = np.array([[0.0, 1.0], [3.0, 3.0], [0.0, 5.0]], dtype=np.float32)
    matching = Matching(
        (np.array([0, 1, 2]), np.array([1, 0, 3])),
        np.zeros((4, 2)),
        np.array([2, 2, 1, 1]),
        0.0,
        0,
    )
    # (1, 0) with (3, 3): a half of the square; (0, 2) with (0, 1): alike. Both seen from both.
    expected = np.quantile([0.5**0.5, 1, 1, 0.5**0.5], (0.05, 0.25, 0.5, 0.75, 0.95))
    assert similarity_of_matched([first, second], matching) == pytest.approx(expected, abs=1e-4)


def test_without_company_there_is_nothing_to_say():
    rows = [np.ones((3, 2), dtype=np.float32)]
    assert similarity_of_matched(rows, IdentityMatching().match(rows)) == []
    dead = [np.zeros((3, 2), dtype=np.float32)] * 2
    assert similarity_of_matched(dead, IdentityMatching().match(dead)) == []


def test_opposites_are_said_to_be_so():
    rows = [np.ones((2, 2), dtype=np.float32), -np.ones((2, 2), dtype=np.float32)]
    found = similarity_of_matched(rows, IdentityMatching().match(rows))
    assert found == pytest.approx([-1.0] * 5)
