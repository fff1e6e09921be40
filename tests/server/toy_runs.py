"""Runs of any strategy on the toy problem, and the stages of each."""

from fedma_flwr.testing import InProcessGrid
from tests.toy import CLIENTS, initial_arrays, make_app


def run(strategy, app=None, rounds=1, clients=CLIENTS, **grid_options):
    grid = InProcessGrid(app or make_app(), clients, **grid_options)
    return strategy.start(grid, initial_arrays(), num_rounds=rounds)


def stage_records(strategy):
    return [record for record in strategy.history if record.name != "hello"]
