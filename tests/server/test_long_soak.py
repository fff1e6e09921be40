"""Five hundred rounds with all faults and a hostile client: as good as without them."""

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord

from fedma_flwr import FedMA, fedma_mod
from fedma_flwr.testing import InProcessGrid, SilentError
from tests.server.test_adversary import quiet
from tests.toy import SPEC, Net, data, initial_arrays, make_app

ROUNDS, CLIENTS, HOSTILE = 500, 6, 5
WITHIN = 0.02


def spoil_text(content, rng):
    content["fedma"] = ConfigRecord(
        {"version": 2**62, "status": "done\x1b[2J", "holds": "x" * 10**5}
    )


def spoil_metrics(content, rng):
    values = {"num-examples": float("inf"), **{f"k{i}": 1e300 for i in range(200)}}
    content["metrics"] = MetricRecord(values)


def spoil_names(content, rng):
    content["arrays"] = ArrayRecord({f"{n}\n": a for n, a in content["arrays"].items()})


def grow(content, rng):
    """Units near the bound, unlike anybody's."""
    arrays = content["arrays"]
    for name, array in list(arrays.items()):
        values = array.numpy()
        noise = rng.normal(size=values.shape) * 9 * max(float(np.abs(values).mean()), 0.1)
        arrays[name] = Array(noise.astype(values.dtype))


SPOILS = (spoil_text, spoil_metrics, spoil_names, grow)


class HostileGrid(InProcessGrid):
    """One client in six lies in every stage; messages of the others meet faults one time in ten."""

    def __init__(self, seed):
        app = make_app(mods=(self.lie, fedma_mod), steps=2)
        super().__init__(app, CLIENTS, intercept=self.meet)
        self.rng = np.random.default_rng(seed)

    def meet(self, message, context):
        if message.content["fedma"]["kind"] == "hello" or self.rng.random() >= 0.1:
            return
        fault = self.rng.integers(3)
        if fault == 0:
            raise MemoryError("out of memory")
        if fault == 1:
            raise SilentError
        context.state.clear()

    def lie(self, message, context, call_next):
        answer = call_next(message, context)
        if context.node_config["partition-id"] == HOSTILE and "arrays" in answer.content:
            SPOILS[self.rng.integers(len(SPOILS))](answer.content, self.rng)
        return answer


def accuracy(arrays):
    model = Net()
    model.load_state_dict(arrays.to_torch_state_dict())
    x, y = (torch.cat(part) for part in zip(*(data(100 + k) for k in range(20)), strict=True))
    return float((model(x).argmax(1) == y).float().mean())


def last_rounds(grid, clients):
    """Mean accuracy of the last ten rounds, and the strategy."""
    found = []

    def evaluate(server_round, arrays):
        strategy.history.exchanges.clear()
        if server_round > ROUNDS - 10:
            found.append(accuracy(arrays))

    strategy = FedMA(
        spec=SPEC, fraction_evaluate=0.0, max_growth=1.0, averaging="trimmed_mean", seed=1
    )
    with quiet():
        result = strategy.start(grid, initial_arrays(), num_rounds=ROUNDS, evaluate_fn=evaluate)
    assert all(np.isfinite(array.numpy()).all() for array in result.arrays.values())
    return float(np.mean(found)), strategy


@pytest.mark.long
def test_five_hundred_rounds_with_faults_and_a_hostile_client():
    calm, _ = last_rounds(InProcessGrid(make_app(steps=2), CLIENTS - 1), CLIENTS - 1)
    disturbed, strategy = last_rounds(HostileGrid(seed=2), CLIENTS)
    assert disturbed > calm - WITHIN
    assert calm > 0.9
    assert len(strategy.history.given_up) < ROUNDS / 50
