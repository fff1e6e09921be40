"""A subclass's own evaluation, and strategies that wrap FedMA: they work, or are refused."""

import pytest
from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import DifferentialPrivacyClientSideAdaptiveClipping as ClientAdaptive
from flwr.serverapp.strategy import DifferentialPrivacyClientSideFixedClipping as ClientFixed
from flwr.serverapp.strategy import DifferentialPrivacyServerSideAdaptiveClipping as ServerAdaptive
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping as ServerFixed
from flwr.serverapp.strategy import Strategy

from fedma_flwr import FedAvg, FedMA
from fedma_flwr.testing import InProcessGrid
from tests.server.subclassed import make, run, same
from tests.toy import CLIENTS, SPEC, initial_arrays, make_app


def test_an_evaluation_and_a_summary_of_ones_own(caplog):
    class Mine(FedMA):
        def configure_evaluate(self, server_round, arrays, config, grid):
            content = RecordDict({"arrays": arrays, "config": config})
            return [Message(content, node, "evaluate") for node in grid.get_node_ids()]

        def aggregate_evaluate(self, server_round, replies):
            metrics = super().aggregate_evaluate(server_round, replies)
            return MetricRecord({**metrics, "mine": 1})

        def summary(self):
            print("mine")

    result = run(Mine(spec=SPEC))
    assert result.evaluate_metrics_clientapp[1]["mine"] == 1
    assert result.evaluate_metrics_clientapp[1]["accuracy"] > 0


WRAPPERS = {
    ServerFixed: {"clipping_norm": 10.0},
    ClientFixed: {"clipping_norm": 10.0},
    ServerAdaptive: {},
    ClientAdaptive: {},
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_flowers_differential_privacy_is_refused_by_name_before_anything_is_sent(kind):
    seen = []
    options = {"noise_multiplier": 0.1, "num_sampled_clients": CLIENTS, **WRAPPERS[kind]}
    wrapped = kind(make(FedMA), **options)
    with pytest.raises(ValueError, match=rf"{kind.__name__} cannot wrap FedMA.*moments"):
        run(wrapped, seen)
    assert not seen


def test_differential_privacy_goes_with_fedavg():
    wrapped = ServerFixed(FedAvg(), 0.01, 10.0, num_sampled_clients=CLIENTS)
    app = make_app()
    result = wrapped.start(InProcessGrid(app, CLIENTS), initial_arrays(), num_rounds=2)
    assert not same(result.arrays, initial_arrays())
    assert list(result.evaluate_metrics_clientapp) == [1, 2]


def test_other_wrappers_work():
    class Wrapper(Strategy):
        def __init__(self, strategy):
            self.strategy = strategy

        def __getattr__(self, name):
            return getattr(self.strategy, name)

    for name in ("configure_train", "aggregate_train", "configure_evaluate", "summary",
                 "aggregate_evaluate"):  # fmt: skip
        setattr(Wrapper, name, lambda self, *a, _n=name: getattr(self.strategy, _n)(*a))
    Wrapper.__abstractmethods__ = frozenset()
    assert same(run(Wrapper(make(FedMA))).arrays, run(make(FedMA)).arrays)
