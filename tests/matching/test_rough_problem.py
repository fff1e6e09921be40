"""What is noted of a visit's gains while they are bounded, by hand."""

import numpy as np

from fedma_flwr.matching.assignment_problem import NEW, Problem
from fedma_flwr.matching.rough_problem import RoughProblem

NOBODY = -np.inf


def three_rows():
    """Return rows 0 and 1 measured, row 2 bounded; the second slot has no unit."""
    existing = np.array([[5.0, NOBODY, 1.0, 2.0], [1.0, NOBODY, 5.0, 2.0], [0.0, NOBODY, 0.0, 9.0]])
    problem = Problem(existing, np.zeros(3), np.ones(3))
    error = np.array([0.1, 0.0, 0.3, 0.4])
    is_bounded = np.array([False, False, True])
    return RoughProblem(np.array([7, 4, 2, 9]), problem, error, is_bounded, np.zeros(3))


def test_slots_have_columns_unless_nobody_has_their_unit():
    rough = three_rows()
    assert rough.columns(np.array([9, 7, 2])).tolist() == [3, 0, 2]
    assert rough.columns(np.array([4, 3, 12])).tolist() == [NEW, NEW, NEW]


def test_slack_is_the_error_of_what_measured_rows_have_until_it_is_exact():
    rough = three_rows()
    assert rough.slack(np.array([0, 2, 3])).tolist() == [0.1, 0.3, 0.0]
    assert rough.slack(np.array([NEW, 0, 3])).tolist() == [0.0, 0.1, 0.0]
    rough.note_exact(np.array([0]), np.array([0, 3]), np.array([[4.95, 1.9]]))
    assert rough.problem.existing[0].tolist() == [4.95, NOBODY, 1.0, 1.9]
    assert rough.slack(np.array([0, 2, 3])).tolist() == [0.0, 0.3, 0.0]
    assert rough.slack(np.array([2, 0, 3])).tolist() == [0.3, 0.1, 0.0]


def test_bounded_rows_are_so_until_they_are_measured():
    rough = three_rows()
    assert rough.bounded(np.array([0, 2])).tolist() == [2]
    rough.note_measured(np.array([2]))
    assert rough.bounded(np.array([0, 2])).tolist() == []
    assert rough.slack(np.array([0, 2, 3])).tolist() == [0.1, 0.3, 0.4]


def test_what_tells_about_rows_in_doubt_are_their_units_and_those_that_nobody_has():
    rough = three_rows()
    columns, doubt = np.array([0, 2, NEW]), np.array([0, 1])
    assert rough.inexact(columns, doubt).tolist() == [0, 2, 3]
    assert rough.inexact(np.array([0, 2, 3]), doubt).tolist() == [0, 2]
    assert rough.inexact(np.array([0, 2, 3]), np.array([0])).tolist() == [0]
    assert rough.inexact(columns, np.array([2])).tolist() == [3]
    rough.note_exact(doubt, np.array([0, 2]), np.array([[5.0, 1.0], [1.0, 5.0]]))
    assert rough.inexact(np.array([0, 2, 3]), doubt).tolist() == []
    assert rough.inexact(columns, doubt).tolist() == [0, 2, 3]  # unit 3 is not exact


def test_what_moved_rows_gain_elsewhere_is_not_what_it_was():
    rough = three_rows()
    rough.note_moved(np.array([True, False, True]))
    assert rough.elsewhere.tolist() == [np.inf, 0.0, np.inf]
