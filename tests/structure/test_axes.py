"""Axis expressions: text, sizes and positions, by hand and by slow reference."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedma_flwr.structure import AxisExpression, SpecError

WIDTHS = {"a": 3, "b": 2, "h": 4}
factors = st.one_of(st.sampled_from(sorted(WIDTHS)), st.integers(1, 3))
axes = st.lists(st.lists(factors, min_size=1, max_size=3).map(tuple), min_size=1, max_size=3).map(
    lambda terms: AxisExpression(tuple(terms))
)


def width(factor):
    return factor if isinstance(factor, int) else WIDTHS[factor]


@pytest.mark.parametrize(
    ("text", "size"),
    [("7", 7), ("a", 3), ("a x 16", 48), ("h + h + h + h", 16), ("a x b + 2 x h", 14)],
)
def test_size_is_the_sum_of_products(text, size):
    assert AxisExpression.parse(text).size(WIDTHS) == size


@pytest.mark.parametrize(
    ("text", "positions"),
    [
        ("a", [2, 0]),
        ("a x 2", [4, 5, 0, 1]),
        ("2 x a", [2, 0, 5, 3]),
        ("a + 1 + a", [2, 0, 3, 6, 4]),
        ("b x a", [2, 0, 5, 3]),
    ],
)
def test_positions_by_hand(text, positions):
    units = {"a": torch.tensor([2, 0])}
    assert AxisExpression.parse(text).positions(units, WIDTHS).tolist() == positions


@given(axes)
def test_text_round_trip(axis):
    assert AxisExpression.parse(str(axis)) == axis


@given(axes)
def test_all_units_in_order_stand_where_they_stood(axis):
    assert axis.positions({}, WIDTHS).tolist() == list(range(axis.size(WIDTHS)))


@given(axes, st.randoms(use_true_random=False))
def test_positions_equal_a_slow_reference(axis, random):
    units = {name: random.sample(range(size), size) for name, size in WIDTHS.items()}
    expected, offset = [], 0
    for term in axis.terms:
        places = [0]
        for factor in term:
            chosen = units[factor] if isinstance(factor, str) else range(factor)
            places = [place * width(factor) + unit for place in places for unit in chosen]
        expected += [offset + place for place in places]
        offset += math.prod(width(factor) for factor in term)
    tensors = {name: torch.tensor(order) for name, order in units.items()}
    assert axis.positions(tensors, WIDTHS).tolist() == expected


@pytest.mark.parametrize("text", ["", "a +  + b", "a x ", "a,b", "a b"])
def test_malformed_text_is_refused(text):
    with pytest.raises(SpecError):
        AxisExpression.parse(text)


@pytest.mark.parametrize("terms", [(), ((),), ((), ("a",)), (("a",), ())])
def test_an_expression_without_factors_is_refused(terms):
    with pytest.raises(SpecError, match="at least one factor"):
        AxisExpression(terms)
