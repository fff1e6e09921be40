"""What a matcher is: one method and one attribute, of any class."""

import dataclasses

import numpy as np
import pytest

from fedma_flwr.matching import (
    BBPMAP,
    IdentityMatching,
    Matcher,
    Matching,
    SavedMatching,
    check_matcher,
    check_matching,
)

THREE = [np.eye(3, 10), 1.1 * np.eye(3, 10)[::-1]]
SAVED = SavedMatching((np.arange(3), np.arange(3)))


class Reversed:
    """No dataclass, and none of the package's: global units in the opposite order."""

    output = "mean"

    def match(self, units, *, weights=None, max_width=None, seed=0):
        assignments = tuple(np.arange(len(rows))[::-1] for rows in units)
        return SavedMatching(assignments).match(units, weights=weights, max_width=max_width)


class WithoutMaxWidth:
    output = "mean"

    def match(self, units, prior_mean=None, weights=None, orders=None, seed=0):
        raise NotImplementedError


class WithOneMore:
    output = "mean"

    def match(self, units, prior_mean, *, weights=None, max_width=None, seed=0):
        raise NotImplementedError


class AnyKeyword:
    output = "posterior"

    def match(self, units, **options):
        raise NotImplementedError


class WithoutOutput:
    match = Reversed.match


class OddOutput(Reversed):
    output = "median"


@pytest.mark.parametrize(
    "matcher", [BBPMAP(), BBPMAP.learned(), IdentityMatching(), SAVED, Reversed(), AnyKeyword()]
)
def test_any_class_with_match_and_output_is_a_matcher(matcher: Matcher):
    check_matcher(matcher)


@pytest.mark.parametrize(
    ("matcher", "message"),
    [
        (BBPMAP, r"matcher was the class BBPMAP; it must be an instance: BBPMAP\(\.\.\.\)"),
        ("bbpmap", r"matcher was 'bbpmap', which has no method `match`"),
        (None, r"matcher was None, which has no method `match`"),
        (WithoutMaxWidth(), r"matcher was .*WithoutMaxWidth.*unexpected keyword.*'max_width'"),
        (WithOneMore(), r"matcher was .*WithOneMore.*missing.*'prior_mean'"),
        (WithoutOutput(), r"matcher was .*WithoutOutput.*`output` is None; .* 'mean'"),
        (OddOutput(), r"matcher was .*OddOutput.*`output` is 'median'"),
    ],
)
def test_what_is_no_matcher_is_refused_in_words(matcher, message):
    with pytest.raises(ValueError, match=message):
        check_matcher(matcher)


@pytest.mark.parametrize("matcher", [BBPMAP(), IdentityMatching(), SAVED, Reversed()])
def test_every_matcher_is_called_alike(matcher):
    matching = matcher.match(THREE, weights=[3.0, 1.0], max_width=3, seed=1)
    assert matching.width == 3
    assert [sorted(a.tolist()) for a in matching.assignments] == [[0, 1, 2]] * 2
    with pytest.raises(ValueError, match="max_width: 2 is below client 0"):
        matcher.match(THREE, max_width=2)


def test_outputs():
    assert [m.output for m in (IdentityMatching(), SAVED, BBPMAP())] == ["mean"] * 3
    assert BBPMAP.reference().output == "posterior"


@pytest.mark.parametrize(("own", "given"), [(None, 6), (6, None), (9, 6), (2, 6), (6, 6)])
def test_the_width_that_is_given_takes_the_place_of_the_matchers_own(own, given):
    units = [10.0 * np.eye(8)[:4], 10.0 * np.eye(8)[4:]]
    matcher = BBPMAP.reference(gamma=1e9)  # it would have all eight
    limited = dataclasses.replace(matcher, max_width=own).match(units, max_width=given)
    assert limited.width == 6
    assert matcher.match(units).width == 8
    apart = (np.arange(4), np.arange(4, 8))
    with pytest.raises(ValueError, match="max_width: 6, the saved matching has 8"):
        SavedMatching(apart, max_width=own).match(units, max_width=given)


def matching(assignments, width=2, units=None):
    assignments = tuple(np.array(units) for units in assignments)
    popularity = np.bincount(np.concatenate(assignments), minlength=width)
    return Matching(assignments, np.zeros((units or width, 3)), popularity, 0.0, 0)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ([[0, 1], [1, 0]], "returned a list, not a Matching"),
        (matching([[0, 1]]), r"assigned \[2\] units; the clients have \[2, 2\]"),
        (matching([[0, 1], [1, 1]]), "two units in one global unit"),
        (matching([[0, 1], [0, 2]], 3), "made 3 global units; at most 2 were allowed"),
        (matching([[0, 1], [1, 0]], units=3), "3 global units, but the popularity of 2"),
    ],
)
def test_what_is_no_matching_names_the_matcher(found, words):
    with pytest.raises(ValueError, match=f"^matcher: .*{words}"):
        check_matching(found, [2, 2], 2)


def test_a_matching_passes():
    check_matching(matching([[0, 1], [1, 0]]), [2, 2], None)
