"""What the server does not keep: a second copy of what its clients have sent."""

import pytest
import torch

from fedma_flwr import FedMA
from fedma_flwr.averaging import averages
from fedma_flwr.averaging.averages import Averaging
from fedma_flwr.testing import InProcessGrid
from tests.toy import SPEC, LayerwiseFedMA, Net, initial_arrays, make_app


class KeepingGrid(InProcessGrid):
    """A grid that remembers the replies that it has handed over, and the messages."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.sent, self.handed_over = [], []

    def push_messages(self, messages):
        self.sent += (messages := list(messages))
        return super().push_messages(messages)

    def pull_messages(self, message_ids):
        replies = super().pull_messages(message_ids)
        self.handed_over += replies
        return replies

    def arrays_left(self):
        records = [r for reply in self.handed_over for r in reply.content.array_records.values()]
        return sum(len(record) for record in records)


class Looking(FedMA):
    """Looks at the replies after they were aggregated."""

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        outcome = super().aggregate_train(server_round, replies)
        self.seen = [len(next(iter(r.content.array_records.values()))) for r in replies]
        return outcome


@pytest.mark.parametrize("strategy_class", [FedMA, LayerwiseFedMA])
def test_replies_are_let_go_once_they_are_decoded(strategy_class):
    grid = KeepingGrid(make_app(steps=1), 3)
    strategy_class(spec=SPEC, fraction_evaluate=0.0).start(grid, initial_arrays(), num_rounds=1)
    assert len(grid.handed_over) > 6
    assert grid.arrays_left() == 0


def test_a_subclass_that_looks_at_replies_still_finds_their_arrays():
    grid = KeepingGrid(make_app(steps=1), 3)
    strategy = Looking(spec=SPEC, fraction_evaluate=0.0)
    strategy.start(grid, initial_arrays(), num_rounds=1)
    assert min(strategy.seen) > 0


def test_clients_that_start_alike_are_sent_the_same_bytes():
    grid = KeepingGrid(make_app(steps=1), 3)
    FedMA(spec=SPEC, fraction_evaluate=0.0).start(grid, initial_arrays(), num_rounds=1)
    models = [m.content["arrays"] for m in grid.sent if "arrays" in m.content.array_records]
    models = [arrays for arrays in models if set(arrays) == set(Net().state_dict())][:3]
    assert len(models) == 3
    for name in models[0]:
        assert models[0][name].data is models[2][name].data


def _whole_mean(values, weights):
    masses = torch.stack([w.to(torch.float64).expand(values[0].shape) for w in weights])
    stacked = torch.stack([value.to(torch.float64) for value in values])
    return (stacked * (masses / masses.sum(0))).sum(0)


@pytest.mark.parametrize("shape", [(5,), (4097,), (37, 21), (700, 33), (130, 3, 5, 5), (10, 500)])
@pytest.mark.parametrize("clients", [1, 7, 40])
def test_averages_in_blocks_are_the_same_to_the_last_bit(monkeypatch, shape, clients):
    monkeypatch.setattr(averages, "_BLOCK", 2**12)
    torch.manual_seed(0)
    values = [torch.randn(shape) for _ in range(clients)]
    for weights in (
        [torch.rand((), dtype=torch.float64) for _ in values],
        [torch.rand([shape[0]] + [1] * (len(shape) - 1), dtype=torch.float64) for _ in values],
    ):
        assert torch.equal(Averaging().combine(values, weights), _whole_mean(values, weights))


def test_a_mean_asks_for_one_clients_weights_after_the_others():
    asked = []

    def weights():
        for client in range(3):
            asked.append(client)
            yield torch.tensor([1.0, float(client == 1), 0.0]).double()

    values = [torch.full((3,), float(client)) for client in range(3)]
    mean, held = Averaging().of_holders(values, weights(), 3.0)
    assert asked == [0, 1, 2]
    assert mean.tolist() == [1.0, 1.0, 0.0]
    assert held.tolist() == [True, True, False]
    median, held = Averaging("median").of_holders(values, weights(), 3.0)
    assert median.tolist() == [1.0, 1.0, 0.0]
    assert held.tolist() == [True, True, False]
