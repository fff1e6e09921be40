"""Two hundred rounds with random faults: the run goes on, and its memory stays flat."""

import gc
import resource
import sys

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord

from fedma_flwr import fedma_mod
from fedma_flwr.testing import InProcessGrid, SilentError
from tests.server.test_adversary import quiet
from tests.toy import SPEC, LayerwiseFedMA, initial_arrays, make_app

ROUNDS, CLIENTS = 200, 4
BLOCKS_A_ROUND, BYTES = 25, 8 * 2**20  # what may be left behind in Python's memory, and in all
FAULTS = ("raises", "silent", "forgets", "nan", "renamed")


class FaultyGrid(InProcessGrid):
    """Each message meets a random fault one time in ten."""

    def __init__(self, seed):
        super().__init__(
            make_app(mods=(self.spoil, fedma_mod), steps=1), CLIENTS, intercept=self.meet
        )
        self.rng = np.random.default_rng(seed)
        self.faults = dict.fromkeys(FAULTS, 0)
        self.spoils, self.renamed = False, 0

    def meet(self, message, context):
        if message.content["fedma"]["kind"] == "hello" or self.rng.random() >= 0.1:
            return
        fault = FAULTS[self.rng.integers(len(FAULTS))]
        self.faults[fault] += 1
        if fault == "raises":
            raise MemoryError("out of memory")
        if fault == "silent":
            raise SilentError
        if fault == "forgets":
            context.state.clear()
        self.spoils = fault == "nan"
        self.renamed += fault == "renamed"  # the node is back under another id next round

    def spoil(self, message, context, call_next):
        answer = call_next(message, context)
        if self.spoils and "arrays" in answer.content:
            arrays = answer.content["arrays"]
            name = next(iter(arrays))
            nan = Array(np.full(arrays[name].shape, np.nan, np.float32))
            answer.content["arrays"] = ArrayRecord({**arrays, name: nan})
        self.spoils = False
        return answer

    def get_node_ids(self):
        while self.renamed:
            oldest = min(self.contexts)
            self.contexts[max(self.contexts) + 1] = self.contexts.pop(oldest)
            self.renamed -= 1
        return super().get_node_ids()


@pytest.mark.long
def test_two_hundred_rounds_with_random_faults():
    sizes, seen = {}, {"rounds": set(), "dropped": 0}

    def count(record):
        seen["rounds"].add(record.round)
        seen["dropped"] += len(record.dropped)

    def evaluate(server_round, arrays):
        strategy.history.exchanges.clear()  # records are meant to stay: they would hide a leak
        if server_round in (ROUNDS // 2, ROUNDS):
            gc.collect()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            sizes[server_round] = np.array([sys.getallocatedblocks(), peak])

    grid = FaultyGrid(seed=1)
    strategy = LayerwiseFedMA(
        spec=SPEC, groups_per_stage="all", fraction_evaluate=0.0, on_exchange=count
    )
    with quiet():
        result = strategy.start(grid, initial_arrays(), num_rounds=ROUNDS, evaluate_fn=evaluate)
    assert min(grid.faults.values()) > 10
    assert all(np.isfinite(array.numpy()).all() for array in result.arrays.values())
    assert seen["rounds"] == set(range(1, ROUNDS + 1))
    assert len(strategy.history.given_up) < ROUNDS / 10
    # A stage that too few have answered is asked again: whoever answers then was not dropped.
    assert seen["dropped"] >= 0.9 * sum(grid.faults[name] for name in ("raises", "silent", "nan"))
    blocks, peak = sizes[ROUNDS] - sizes[ROUNDS // 2]
    # Each round leaves its metrics in Flower's Result, and some text where it was given up.
    assert blocks < BLOCKS_A_ROUND * ROUNDS // 2
    assert peak < BYTES
