"""One group's saved matching: clients that are missing, how wide it may be, what it checks."""

import numpy as np
import pytest

from fedma_flwr.matching import IdentityMatching, SavedMatching
from fedma_flwr.server.matchings_folder import GroupMatching, MatchingsFolder


def test_units_of_missing_clients_close_up():
    group = GroupMatching(
        {"x": np.array([2, 0]), "y": np.array([1, 3]), "z": np.array([3, 2])}, 7.0, 1
    )
    assert [a.tolist() for a in group.matcher(["z", "x"]).assignments] == [[2, 1], [1, 0]]
    assert group.matcher(["z", "x"]).objective is None
    everyone = group.matcher(["z", "y", "x"])
    assert [a.tolist() for a in everyone.assignments] == [[3, 2], [1, 3], [2, 0]]
    assert everyone.objective == 7.0


def test_as_many_units_as_may_be_pass(tmp_path):
    """Sixteen of b, twice its initial number, and not one more."""
    folder = MatchingsFolder(tmp_path, {"b": 16})
    units = {"x": np.arange(8), "y": np.arange(8, 16)}
    folder.save(1, {"b": GroupMatching(units, 0.5, 0)})
    (found,) = folder.read(1).values()
    assert found.width == 16
    assert found.popularity.tolist() == [1] * 16
    folder.max_widths["b"] = 15
    with pytest.raises(ValueError, match="group 'b': it has 16 units, at most 15 may be"):
        folder.read(1)


def test_the_matcher_by_itself_checks_what_it_is_given():
    rows = [np.eye(3), np.eye(3)]
    same = (np.arange(3), np.arange(3))
    with pytest.raises(ValueError, match=r"\[3, 3\] units, the saved matching \[3\]"):
        SavedMatching(same[:1]).match(rows)
    with pytest.raises(ValueError, match="max_width: 3, the saved matching has 6"):
        SavedMatching((np.arange(3), np.arange(3, 6)), max_width=3).match(rows)
    with pytest.raises(ValueError, match="at least one client"):
        SavedMatching(())
    weighted = SavedMatching(same).match([np.ones((3, 1)), 4 * np.ones((3, 1))], weights=[2, 1])
    assert weighted.units[:, 0].tolist() == [2.0, 2.0, 2.0]
    identity = IdentityMatching().match(rows)
    assert SavedMatching(same).match(rows).objective == identity.objective
