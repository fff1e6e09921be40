"""Threads: set by the engine for its own products, and put back."""

import numpy as np
import pytest
import torch

from fedma_flwr.averaging import ClientUpdate, settle
from fedma_flwr.matching import BBPMAP, search, threads
from fedma_flwr.matching.threads import threads_for, using_threads
from fedma_flwr.structure import StagePlan, sequential_spec

UNITS = [np.random.default_rng(client).normal(size=(6, 300)) for client in range(3)]


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def seen(monkeypatch, matcher):
    """The numbers of threads that the search runs on."""
    found = []
    run = search.Search.run

    def watched(self, orders):
        found.append(torch.get_num_threads())
        return run(self, orders)

    monkeypatch.setattr(search.Search, "run", watched)
    matcher.match(UNITS)
    return found


def test_small_layers_take_one_thread_and_leave_the_rest_as_it_was(monkeypatch, two_threads):
    assert seen(monkeypatch, BBPMAP()) == [1]
    assert torch.get_num_threads() == 2


def test_large_products_take_what_torch_may_use(monkeypatch, two_threads):
    monkeypatch.setattr(threads, "_WORTH_A_THREAD", 1000)
    assert seen(monkeypatch, BBPMAP()) == [2]
    assert threads_for(1999) == 1
    assert threads_for(2000) == 2
    assert threads_for(10**9) == 2


@pytest.mark.parametrize("make", [BBPMAP, BBPMAP.reference, BBPMAP.learned])
def test_who_knows_better_says_so(monkeypatch, two_threads, make):
    assert seen(monkeypatch, make(threads=3)) == [3]
    assert torch.get_num_threads() == 2


def test_threads_are_put_back_after_an_error(two_threads):
    with pytest.raises(ZeroDivisionError), using_threads(1):
        raise ZeroDivisionError
    assert torch.get_num_threads() == 2


def test_the_result_and_the_text_do_not_depend_on_them(two_threads):
    one, two = BBPMAP(threads=1), BBPMAP(threads=2)
    assert str(one) == str(two) == str(BBPMAP())
    first, second = one.match(UNITS), two.match(UNITS)
    for left, right in zip(first.assignments, second.assignments, strict=True):
        assert left.tolist() == right.tolist()
    assert np.array_equal(first.units, second.units)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2"])
def test_a_wrong_number_is_refused(value):
    with pytest.raises(ValueError, match="threads: "):
        BBPMAP(threads=value)


def test_averages_are_made_on_one_thread(monkeypatch, two_threads):
    found = []

    def watched(*_):
        found.append(torch.get_num_threads())
        raise ZeroDivisionError

    monkeypatch.setattr(settle, "_average_units", watched)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    spec = sequential_spec(model)
    update = ClientUpdate(dict(model.state_dict()), 1.0)
    with pytest.raises(ZeroDivisionError):
        settle.settle_stage(
            spec,
            StagePlan.build(spec)[0],
            [update, update],
            matched=frozenset(),
            matcher=BBPMAP(),
            max_widths=dict.fromkeys(spec.groups, 8),
        )
    assert found == [1]
    assert torch.get_num_threads() == 2
