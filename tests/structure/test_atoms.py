"""The atom algebra: sizes, hand-worked cases, and soundness of what is left free."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedma_flwr.structure.deriving.atoms import (
    Atom,
    SizeMismatchError,
    all_pinned,
    expand,
    fixed,
    free,
    leaves,
    pin,
    size,
    split,
    unify,
)
from fedma_flwr.structure.deriving.reshaping import concat, divide, product, reshape


def positions(axis, orders):
    """Where each position of an axis comes from when every atom is rotated; a slow reference."""
    result, offset = [], 0
    for term in expand(axis):
        places = [0]
        for atom in term:
            order = orders.setdefault(atom, rotated(atom))
            places = [place * atom.size + unit for place in places for unit in order]
        result += [offset + place for place in places]
        offset += math.prod(atom.size for atom in term)
    return result


def rotated(atom):
    shift = 0 if atom.pinned else 1
    return [(unit + shift) % atom.size for unit in range(atom.size)]


sizes = st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=3)
axes = st.lists(sizes, min_size=1, max_size=3).map(
    lambda terms: tuple(tuple(Atom(n) for n in term) for term in terms)
)


@given(axes, st.data())
def test_what_is_split_moves_as_the_whole(axis, data):
    length = size(axis)
    cut = data.draw(st.integers(0, length))
    parts = split(axis, [cut, length - cut])
    orders = {}
    whole = positions(axis, orders)
    first = positions(parts[0], orders) if cut else []
    second = positions(parts[1], orders) if length - cut else []
    assert whole == first + [cut + place for place in second]


@given(axes, axes)
def test_what_is_united_moves_alike(left, right):
    if size(left) == size(right):
        unify(left, right)
        orders = {}
        assert positions(left, orders) == positions(right, orders)


small = st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=2).map(
    lambda terms: tuple((Atom(n),) for n in terms)
)


@settings(deadline=None)
@given(st.lists(small, min_size=1, max_size=3), st.data())
def test_a_reshape_moves_elements_as_before(before, data):
    total = math.prod(size(axis) for axis in before)
    divisors = [n for n in range(1, total + 1) if total % n == 0]
    first = data.draw(st.sampled_from(divisors))
    after = reshape(tuple(before), [first, total // first])
    assert [size(axis) for axis in after] == [first, total // first]
    orders = {}
    assert positions(product(before), orders) == positions(product(after), orders)


def test_a_flattened_concatenation_is_written_out():
    a, b = free(2), free(3)
    axis = product([concat([a, b]), fixed(4)])
    assert [[atom.size for atom in term] for term in expand(axis)] == [[2, 4], [3, 4]]


def test_a_group_before_a_concatenation_is_pinned():
    outer = free(2)
    expand(product([outer, concat([free(2), free(3)])]))
    assert all_pinned(expand(outer))


def test_gates_divide_into_their_number_and_the_units():
    units = free(5)
    gates, inner = divide(concat([units] * 4), [4, 5])
    assert all_pinned(expand(gates))
    assert list(leaves(inner)) == list(leaves(units))


def test_products_that_do_not_divide_are_pinned():
    left, right = product([free(4), free(6)]), product([free(6), free(4)])
    unify(left, right)
    assert all_pinned(expand(left))
    assert all_pinned(expand(right))


def test_a_cut_through_units_pins_them():
    axis = product([free(4), free(6)])
    split(axis, [9, 15])
    assert all_pinned(expand(axis))


def test_the_first_reason_is_kept():
    axis = free(3)
    pin(axis, "first")
    pin(axis, "second")
    assert next(leaves(axis)).reason == "first"


def test_sizes_that_differ_are_refused():
    with pytest.raises(SizeMismatchError):
        unify(free(3), free(4))
    with pytest.raises(SizeMismatchError):
        split(free(3), [1, 1])
    with pytest.raises(SizeMismatchError):
        reshape((free(3),), [2])


def test_empty_axes():
    assert [size(axis) for axis in reshape((free(0), free(3)), [3, 0])] == [3, 0]
