"""Assignments that were found before: their means, objective and sweeps."""

import numpy as np
import pytest

from fedma_flwr.matching import IdentityMatching, SavedMatching

UNITS = [np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[0.0, 4.0], [3.0, 0.0]])]
ASSIGNMENTS = (np.array([0, 1]), np.array([1, 2]))


def test_means_and_popularity_by_hand():
    matching = SavedMatching(ASSIGNMENTS).match(UNITS)
    assert matching.units.tolist() == [[1.0, 0.0], [0.0, 3.0], [3.0, 0.0]]
    assert matching.popularity.tolist() == [1, 2, 1]
    weighted = SavedMatching(ASSIGNMENTS).match(UNITS, weights=[3.0, 1.0])
    assert weighted.units.tolist() == [[1.0, 0.0], [0.0, 2.5], [3.0, 0.0]]


@pytest.mark.parametrize("weights", [None, [3.0, 1.0]])
def test_the_objective_is_the_saved_one_or_that_of_plain_sums(weights):
    """Sums (1, 0), (0, 6), (3, 0): 1/2 + 36/3 + 9/2."""
    matching = SavedMatching(ASSIGNMENTS).match(UNITS, weights=weights)
    assert matching.objective == pytest.approx(17.0)
    assert matching.sweeps == 0
    saved = SavedMatching(ASSIGNMENTS, objective=0.0, sweeps=3).match(UNITS, weights=weights)
    assert (saved.objective, saved.sweeps) == (0.0, 3)


def test_identity_has_the_weighted_mean_and_the_plain_objective():
    """Sums (1, 4) and (3, 2) over 1 + 2: 17/3 + 13/3."""
    matching = IdentityMatching().match(UNITS, weights=[3.0, 1.0])
    assert matching.units.tolist() == [[0.75, 1.0], [0.75, 1.5]]
    assert matching.objective == pytest.approx(10.0)
    assert matching.sweeps == 0


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        ((), "at least one client, each with at least one unit"),
        (([0], []), "at least one client, each with at least one unit"),
        (([0, 1], [1, 1]), "client 1 has two units in one global unit"),
        (([0, 2], [2, 0]), r"0 \.\. 1 and every one of them, got 0 \.\. 2"),
        (([-1, 0], [0]), r"0 \.\. 1 and every one of them, got -1 \.\. 0"),
    ],
)
def test_what_are_no_assignments_is_refused(assignments, message):
    with pytest.raises(ValueError, match=f"assignments: .*{message}"):
        SavedMatching(tuple(np.array(a, dtype=np.int64) for a in assignments))


def test_the_width_is_that_of_all_clients():
    assert SavedMatching(ASSIGNMENTS).width == 3
    assert SavedMatching(ASSIGNMENTS, max_width=3).match(UNITS).width == 3
    with pytest.raises(ValueError, match=r"units: the clients have \[2, 2\] units, .* \[2\]"):
        SavedMatching(ASSIGNMENTS[:1]).match(UNITS)
