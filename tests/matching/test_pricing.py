"""What popularity is worth and what new units cost, by hand; the defaults that are documented."""

import ast
import inspect
import re
from dataclasses import replace

import numpy as np
import pytest

from fedma_flwr.matching import BBPMAP
from fedma_flwr.matching.pricing import Pricing

PRICING = Pricing(
    gamma=6.0, popularity_weight=2.0, popularity_cap=3, soft_width=None, max_width=None, price=1.0
)


def test_popularity_is_worth_its_odds_up_to_the_cap():
    gain = replace(PRICING, clients=9).popularity_gain(np.array([1, 3, 4, 8]))
    np.testing.assert_allclose(gain, 2 * np.log([1 / 8, 3 / 6, 3 / 6, 3 / 6]))
    everyone = replace(PRICING, popularity_cap=9, clients=9).popularity_gain(np.array([9]))
    np.testing.assert_allclose(everyone, 2 * np.log([9.0]))


def test_the_kth_new_unit_costs_twice_the_logarithm_of_k_more():
    """1 - 2 log(6 / 12) for the first one."""
    prices = replace(PRICING, clients=12).prices(slots=3)
    np.testing.assert_allclose(prices, 1 + 2 * np.log(2) + 2 * np.log([1.0, 2.0, 3.0]))
    assert PRICING.prices(slots=0).shape == (0,)


@pytest.mark.parametrize(
    ("soft_width", "max_width", "rows", "width", "slots"),
    [
        (None, None, 5, 100, 5),
        (8, None, 5, 6, 2),
        (8, None, 5, 2, 5),
        (8, None, 5, 8, 1),  # one at least
        (8, None, 5, 100, 1),
        ("double", None, 5, 8, 2),
        ("double", None, 5, 20, 1),
        (None, 12, 5, 10, 2),
        (None, 12, 5, 12, 0),
        (8, 9, 5, 8, 1),
        (8, None, 5, 3, 5),
        (4, None, 5, 2, 3),  # room for all of the client's units
    ],
)
def test_how_many_new_units_there_may_be(soft_width, max_width, rows, width, slots):
    pricing = replace(PRICING, soft_width=soft_width, max_width=max_width)
    assert pricing.slots(rows, width) == slots


def documented(text):
    """Return the defaults of a docstring's parameters by name."""
    # Python 3.13 takes the indentation out when it compiles; 3.11 does not.
    found = re.findall(r"^(\w[\w, ]*) : .*\(default: (.*)\)$", text, re.MULTILINE)
    return {name: ast.literal_eval(value) for names, value in found for name in names.split(", ")}


def test_the_defaults_are_those_of_the_docstring():
    defaults = documented(inspect.getdoc(BBPMAP))
    assert len(defaults) == 16
    assert {name: getattr(BBPMAP(), name) for name in defaults} == defaults


def test_the_defaults_of_the_other_two():
    common = {"gamma": 7.0, "local_variance": 1.0, "prior_variance": 1.0, "sweeps": 5}
    common |= {"output": "posterior", "max_width": None, "popularity_cap": 10}
    reference = {"log_determinant": False, "popularity_weight": 1.0, "soft_width": 700}
    learned = {"log_determinant": True, "popularity_weight": 2.0, "soft_width": "double"}
    reference |= {"fit": False, "default_prior_mean": "zero"}
    learned |= {"fit": True, "default_prior_mean": "rows"}
    assert BBPMAP.reference() == BBPMAP(**common, **reference)
    assert BBPMAP.learned() == BBPMAP(**common, **learned)
