"""Runs with units that grow, to be stopped and resumed, and how two of them compare."""

from flwr.app import MetricRecord

from fedma_flwr.matching import BBPMAP
from fedma_flwr.testing import InProcessGrid
from tests.toy import SPEC, initial_arrays, make_app

CLIENTS, ROUNDS = 5, 4


GROWING = {
    "spec": SPEC,
    "matcher": BBPMAP.reference(gamma=50.0),
    "initialisation": "own",
    "fraction_train": 0.6,
    "seed": 3,
}


def make_grid(intercept=None):
    return InProcessGrid(make_app(), CLIENTS, intercept=intercept)


def score(server_round, arrays):
    total = sum(float(array.numpy().sum()) for array in arrays.values())
    return MetricRecord({"round": server_round, "sum": total})


def run(strategy, grid=None, rounds=ROUNDS, evaluate_fn=score):
    grid = grid or make_grid()
    return strategy.start(grid, initial_arrays(), num_rounds=rounds, evaluate_fn=evaluate_fn)


def values(arrays):
    return {name: array.data for name, array in arrays.items()}


def assert_equal(resumed, uninterrupted):
    assert values(resumed.arrays) == values(uninterrupted.arrays)
    assert list(resumed.arrays) == list(uninterrupted.arrays)
    for kind in (
        "train_metrics_clientapp",
        "evaluate_metrics_clientapp",
        "evaluate_metrics_serverapp",
    ):
        assert getattr(resumed, kind) == getattr(uninterrupted, kind), kind
