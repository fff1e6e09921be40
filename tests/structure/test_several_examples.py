"""Several examples: branches, other lengths, optional arguments. What is tried is promised."""

import logging

import pytest
import torch
from torch import nn

from fedma_flwr.structure import UnsupportedModelError, derive_spec, prove_spec
from fedma_flwr.structure.model_copies import examples_of
from fedma_flwr.structure.model_digest import model_digest
from fedma_flwr.structure.not_reached import not_reached
from tests.structure.networks import Net

X = torch.zeros(2, 6)


def by_flag(net, x, deep=False):
    h = net.a(x).relu()
    return net.b(net.c(h.flip(1)).relu() if deep else h)


def by_length(net, x):
    h = net.a(x).relu()
    return net.b(h.flip(-1) if x.dim() > 2 else h)


def branching(run, **parts):
    return Net(run, a=nn.Linear(6, 8), b=nn.Linear(8, 3), **parts)


def test_the_form_of_several_examples_is_a_list_of_tuples_or_dicts():
    one, named = (X,), {"x": X}
    assert examples_of(one) == [one]
    assert examples_of([X, X]) == [(X, X)]  # positional arguments, as ever
    assert examples_of(named) == [named]
    assert examples_of([one, named]) == [one, named]
    assert examples_of((one, named)) == [(one, named)]
    assert examples_of([X, named]) == [(X, named)]
    assert examples_of([]) == [()]


def test_a_branch_that_one_example_takes_counts():
    model = branching(by_flag, c=nn.Linear(8, 8))
    first = derive_spec(model, (X,))
    assert list(first.groups) == ["a"]
    assert not_reached(first) == ["c.weight", "c.bias"]
    both = derive_spec(model, [(X,), (X, True)])
    assert not_reached(both) == []
    assert not both.groups  # what a makes is read in order, and b reads it and what c makes
    with pytest.raises(Exception, match="'a'"):
        prove_spec(first, model, [(X,), (X, True)])


def test_another_length_counts():
    model = branching(by_length)
    assert list(derive_spec(model, (X,)).groups) == ["a"]
    assert not derive_spec(model, [(X,), (torch.zeros(2, 4, 6),)]).groups


def test_growth_must_hold_for_all_examples():
    def cut(net, x, halves=False):
        h = net.a(x).relu()
        return net.b(
            torch.cat([h[:, : h.shape[1] // 2], -h[:, h.shape[1] // 2 :]], 1) if halves else h
        )

    for seed in range(5):
        torch.manual_seed(seed)
        model = branching(cut)
        assert derive_spec(model, (X,)).groups["a"].growable
        both = derive_spec(model, [(X,), (X, True)])
        assert not any(group.growable for group in both.groups.values())


def test_an_example_that_does_not_run_is_named():
    with pytest.raises(UnsupportedModelError, match=r"example_inputs\[1\]"):
        derive_spec(branching(by_length), [(X,), (torch.zeros(2, 5),)])


def test_what_depends_on_values_says_which_inputs_to_add(caplog):
    def by_value(net, x):
        h = net.a(x).relu()
        return net.b(h if x.sum() > 1e9 else h * 2)

    logger = logging.getLogger("flwr")
    logger.addHandler(caplog.handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        derive_spec(branching(by_value), (X,))
    finally:
        logger.removeHandler(caplog.handler)
        logger.setLevel(level)
    said = {record.getMessage() for record in caplog.records if "example_inputs=[" in record.msg}
    assert len(said) == 1
    assert "the model (Net)" in said.pop()


def test_several_examples_have_another_digest_than_arguments_that_are_tuples():
    model = branching(by_length)
    one = (torch.zeros(2, 6),)
    assert model_digest(model, [one, one]) != model_digest(model, (one, one))
