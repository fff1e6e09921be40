"""The clients of a run: waited for, and drawn from the seed."""

import numpy as np
import pytest
from flwr.app import ConfigRecord
from flwr.serverapp.exception import AggregationError

from fedma_flwr import FedAvg
from fedma_flwr.server import cohort
from fedma_flwr.testing import InProcessGrid
from tests.toy import SPEC, LayerwiseFedMA, initial_arrays, make_app


class Clock:
    """Stands for the module `time`: who sleeps is at the end of it at once."""

    def __init__(self):
        self.now = 1000.0
        self.slept = []

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(cohort, "time", clock)
    return clock


class ChangingGrid(InProcessGrid):
    """A grid of which `online(nodes)` says who can be reached."""

    def __init__(self, online, clients=4, **options):
        super().__init__(make_app(steps=1), clients, **options)
        self.online = online

    def get_node_ids(self):
        return self.online(super().get_node_ids())


def start(strategy, grid, rounds=1, **options):
    return strategy.start(grid, initial_arrays(), num_rounds=rounds, **options)


def stages(strategy):
    return [record for record in strategy.history if record.name != "hello"]


# ---------------------------------------------------------------- waiting


@pytest.mark.parametrize("late", [0.0, 2.5, 5.0])
def test_a_late_node_is_waited_for_up_to_the_deadline(clock, late):
    grid = ChangingGrid(lambda nodes: nodes if clock.now >= 1000.0 + late else nodes[:3])
    strategy = LayerwiseFedMA(
        spec=SPEC, min_available_nodes=4, node_timeout=5.0, fraction_evaluate=0.0
    )
    start(strategy, grid)
    assert stages(strategy)[0].cohort == 4
    assert clock.slept == [1.0] * int(np.ceil(late))


def test_a_node_that_comes_after_the_deadline_is_too_late(clock):
    grid = ChangingGrid(lambda nodes: nodes if clock.now > 1005.0 else nodes[:3])
    strategy = LayerwiseFedMA(spec=SPEC, min_available_nodes=4, node_timeout=5.0)
    said = r"4 nodes are needed, but after 5 s \(node_timeout\) only 3.*Start more SuperNodes"
    with pytest.raises(AggregationError, match=said):
        start(strategy, grid)
    assert clock.now == 1005.0


def test_a_short_deadline_is_not_overslept(clock):
    grid = ChangingGrid(lambda nodes: nodes[:1])
    with pytest.raises(AggregationError, match=r"after 0\.25 s"):
        start(FedAvg(node_timeout=0.25), grid)
    assert clock.slept == [0.25]


@pytest.mark.parametrize(
    ("options", "needed"),
    [
        ({"min_available_nodes": 4, "min_train_nodes": 2}, 4),
        ({"min_available_nodes": 2, "min_train_nodes": 4}, 4),
        ({"min_available_nodes": 2, "min_train_nodes": 3}, 3),
    ],
)
def test_the_larger_minimum_is_waited_for(clock, options, needed):
    """One node a second: the run begins as soon as there are enough."""
    grid = ChangingGrid(lambda nodes: nodes[: 1 + int(clock.now - 1000.0)])
    strategy = LayerwiseFedMA(spec=SPEC, fraction_evaluate=0.0, **options)
    start(strategy, grid)
    assert stages(strategy)[0].cohort == needed


class FewerFrom(ChangingGrid):
    """A grid that has fewer nodes from a round on."""

    def __init__(self, number, strategy, count):
        super().__init__(lambda nodes: nodes[:count] if self.done(number - 1) else nodes)
        self.strategy = strategy

    def done(self, rounds):
        return any(record.round == rounds and record.stage == 2 for record in self.strategy.history)


def test_a_later_round_makes_do_with_the_nodes_that_are_there(clock, caplog):
    strategy = LayerwiseFedMA(
        spec=SPEC,
        min_available_nodes=4,
        min_train_nodes=2,
        node_timeout=3.0,
        fraction_evaluate=0.0,
    )
    result = start(strategy, FewerFrom(2, strategy, 3), rounds=2)
    assert [record.cohort for record in stages(strategy)] == [4, 4, 4, 3, 3, 3]
    assert strategy.history.given_up == {}
    assert list(result.train_metrics_clientapp) == [1, 2]
    assert clock.slept == [1.0] * 3
    assert "Round 2: 4 nodes are needed, but after 3 s (node_timeout) only 3" in caplog.text


def test_a_later_round_below_the_minimum_is_given_up(clock):
    strategy = LayerwiseFedMA(
        spec=SPEC,
        min_available_nodes=2,
        min_train_nodes=2,
        node_timeout=3.0,
        fraction_evaluate=0.0,
    )
    models = {}

    def note(server_round, arrays):
        models[server_round] = {name: array.data for name, array in arrays.items()}

    result = start(strategy, FewerFrom(2, strategy, 1), rounds=3, evaluate_fn=note)
    reason = "2 nodes are needed, but only 1 were connected"
    assert strategy.history.given_up == {2: reason, 3: reason}
    assert models[3] == models[2] == models[1] != models[0]
    assert list(result.train_metrics_clientapp) == [1]
    assert len(stages(strategy)) == 3


def test_an_evaluation_that_is_short_of_nodes_gives_up_no_round(clock):
    strategy = LayerwiseFedMA(
        spec=SPEC,
        min_available_nodes=2,
        min_train_nodes=2,
        min_evaluate_nodes=4,
        node_timeout=3.0,
    )
    # In round 2 all four are there until the last stage has ended.
    result = start(strategy, FewerFrom(3, strategy, 3), rounds=3)
    assert strategy.history.given_up == {}
    assert list(result.train_metrics_clientapp) == [1, 2, 3]
    assert list(result.evaluate_metrics_clientapp) == [1]


# ---------------------------------------------------------------- drawing


def drawn(seed, kind, rounds=6, **options):
    """Which clients of eight got a kind of message, round by round."""
    asked = []

    def note(message, context):
        if message.metadata.message_type == kind and "arrays" in message.content:
            number = message.content["config"]["server-round"]
            asked.append((number, context.node_config["partition-id"]))

    strategy = FedAvg(seed=seed, fraction_train=0.5, fraction_evaluate=0.5, **options)
    # Node ids in no order: clients are drawn by their keys.
    nodes = [17, 4, 99, 3, 56, 8, 77, 21]
    grid = InProcessGrid(make_app(steps=0), 8, node_ids=nodes, intercept=note)
    start(strategy, grid, rounds=rounds)
    return [sorted(c for n, c in asked if n == number) for number in range(1, rounds + 1)]


@pytest.mark.parametrize("seed", [0, 5])
def test_the_cohort_is_drawn_from_seed_round_and_stream(seed):
    """Training is stream 0, evaluation stream 1: old runs cannot be repeated with others."""

    def numpys(stream):
        return [
            sorted(np.random.default_rng([seed, number, stream]).choice(8, 4, replace=False))
            for number in range(1, 7)
        ]

    assert drawn(seed, "train") == numpys(0)
    assert drawn(seed, "evaluate") == numpys(1)
    assert numpys(0) != numpys(1)


def test_a_share_is_rounded_down_but_not_below_the_minimum():
    def sizes(**options):
        strategy = FedAvg(fraction_evaluate=0.0, **options)
        start(strategy, InProcessGrid(make_app(steps=0), 7))
        return stages(strategy)[0].cohort

    assert sizes(fraction_train=0.5) == 3
    assert sizes(fraction_train=0.99) == 6
    assert sizes(fraction_train=0.1) == 2
    assert sizes(fraction_train=0.1, min_train_nodes=5) == 5
    assert sizes(fraction_train=1.0) == 7


def test_who_is_asked_beside_the_cohort_has_a_stream_of_its_own():
    """Of ten nodes three train: a share of 0.8 asks five more, in stream 2 of the seed."""
    strategy, cohort, others = FedAvg(seed=5), [11, 14, 17], [10, 12, 13, 15, 16, 18, 19]
    strategy._online = list(range(10, 20))
    places = sorted(np.random.default_rng([5, 4, 2]).choice(7, 5, replace=False))
    assert strategy._others(cohort, 4, 0.8) == [others[place] for place in places]
    assert strategy._others(cohort, 4, 1.0) == others
    assert strategy._others(cohort, 4, 0.3) == strategy._others(cohort, 4, 0.1) == []


def test_without_shares_nobody_is_asked():
    """Not even for its name."""
    asked = []
    for strategy in (
        LayerwiseFedMA(spec=SPEC, fraction_train=0.0, fraction_evaluate=0.0),
        FedAvg(fraction_train=0.0, fraction_evaluate=0.0),
    ):
        grid = InProcessGrid(make_app(), 4, intercept=lambda message, _: asked.append(message))
        start(strategy, grid)
    assert asked == []


# ---------------------------------------------------------------- deadlines of messages


@pytest.mark.parametrize(("stage_timeout", "expected"), [(None, 50.0), (7.0, 7.0)])
@pytest.mark.parametrize("make", [lambda **o: LayerwiseFedMA(spec=SPEC, **o), FedAvg])
def test_all_messages_have_the_stages_time_to_live(make, stage_timeout, expected):
    lives, waits = set(), set()

    class Grid(InProcessGrid):
        def send_and_receive(self, messages, *, timeout=None):
            waits.add(timeout)
            return super().send_and_receive(messages, timeout=timeout)

    def note(message, context):
        lives.add(message.metadata.ttl)

    strategy = make(stage_timeout=stage_timeout)
    grid = Grid(make_app(steps=0), 4, intercept=note)
    start(strategy, grid, timeout=50.0)
    assert lives == {expected}
    assert waits == ({50.0, expected})


def test_the_train_config_of_a_user_is_not_written_to():
    config = ConfigRecord({"lr": 0.5})
    strategy = LayerwiseFedMA(spec=SPEC, fraction_evaluate=0.0)
    start(strategy, InProcessGrid(make_app(steps=0), 4), train_config=config)
    assert dict(config) == {"lr": 0.5}
