"""How long an exchange waits: one that hangs costs its deadline once, and a quorum ends a stage."""

import time

import pytest
from flwr.app import Message

from fedma_flwr import FedMA
from fedma_flwr.server import cohort, pulling
from fedma_flwr.server.pulling import GuardedGrid
from fedma_flwr.server.waiting import Waiting
from fedma_flwr.testing import InProcessGrid
from tests.toy import SPEC, initial_arrays, make_app

DEADLINE, POLL = 3600.0, 3.0


class Clock:
    """Seconds that pass only when somebody waits."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "sleep", self.sleep)

    def sleep(self, seconds):
        self.now += seconds


class SlowGrid(InProcessGrid):
    """Clients that take their time: what it has not pulled yet comes when it is due."""

    def __init__(self, clock, delay, clients=4):
        super().__init__(make_app(steps=1), clients)
        self.clock, self.delay = clock, delay
        self._due = {}

    def push_messages(self, messages):
        messages = list(messages)
        ids = super().push_messages(messages)
        for key, message in zip(ids, messages, strict=True):
            client = message.metadata.dst_node_id - 100
            self._due[key] = self.clock.now + self.delay(client, message)
        return ids

    def pull_messages(self, message_ids):
        return super().pull_messages([k for k in message_ids if self._due[k] <= self.clock.now])


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.delattr(InProcessGrid, pulling.REPLIES_AT_ONCE)
    monkeypatch.setattr(pulling, "_pushes_and_pulls", lambda grid: True)
    return Clock(monkeypatch)


def hello(message: Message) -> bool:
    return message.content["fedma"]["kind"] == "hello"


def run(grid, rounds=3, **options):
    strategy = FedMA(spec=SPEC, fraction_evaluate=0.0, stage_timeout=DEADLINE, **options)
    strategy.start(grid, initial_arrays(), num_rounds=rounds)
    return strategy


def stages(strategy):
    return [record for record in strategy.history if record.name != "hello"]


def test_a_client_that_hangs_costs_its_deadline_once(clock):
    grid = SlowGrid(clock, lambda client, message: 1e9 if client == 3 else 10.0)
    strategy = run(grid)
    # The hello has a deadline of its own. Then its silence is known: twice the others' time.
    assert clock.now < 120 + POLL + 6 * (2 * 12 + 5 + POLL) + 12
    assert [record.answered for record in stages(strategy)] == [3] * 6
    assert [record.cohort for record in strategy.history if record.name == "hello"] == [4]


def test_who_falls_silent_later_costs_one_stage(clock):
    grid = SlowGrid(clock, lambda c, message: 1e9 if c == 3 and not hello(message) else 10.0)
    run(grid)
    assert DEADLINE < clock.now < DEADLINE + 300


def test_who_is_heard_of_late_is_waited_for_again(clock):
    """Client 3 takes 100 s in the first stage of all: it is cut off, heard of, and back."""

    def delay(client, message):
        first = not hello(message) and message.content["fedma"]["round"] == 1
        slow = client == 3 and first and message.content["fedma"]["stage"] == 0
        return 100.0 if slow else 60.0 if client == 3 and not hello(message) else 10.0

    strategy = run(SlowGrid(clock, delay), quorum=0.75)
    assert stages(strategy)[0].answered == 3
    assert "before the stage ended" in stages(strategy)[0].dropped["3"]
    strategy = run(SlowGrid(clock, delay))
    assert [record.answered for record in stages(strategy)] == [4] * 6


def test_a_quorum_ends_a_stage(clock):
    grid = SlowGrid(clock, lambda client, message: 1.0 if hello(message) else 10.0 * (client + 1))
    strategy = run(grid, rounds=1, quorum=0.5)
    assert [record.answered for record in stages(strategy)] == [2, 2]
    assert clock.now <= POLL + 2 * (20 + POLL)


def test_a_hello_is_not_repeated_and_a_stage_tells_the_key(clock):
    grid = SlowGrid(clock, lambda client, message: 1e9 if client == 3 and hello(message) else 10.0)
    strategy = run(grid)
    hellos = [record for record in strategy.history if record.name == "hello"]
    assert [(record.cohort, record.answered) for record in hellos] == [(4, 3)]
    assert [record.answered for record in stages(strategy)] == [4] * 6
    assert [strategy.client_key(100 + client) for client in range(4)] == list("0123")


def test_nodes_that_never_came_are_waited_for_once(clock):
    grid = SlowGrid(clock, lambda client, message: 1.0)
    nodes = list(grid.contexts)
    rounds = []

    def connected():
        first = not rounds or rounds[-1] < 2
        return nodes if first else nodes[:3]

    grid.get_node_ids = connected
    strategy = FedMA(spec=SPEC, fraction_evaluate=0.0, min_available_nodes=4, node_timeout=600.0)

    def evaluate(server_round, arrays):
        rounds.append(server_round + 1)

    strategy.start(grid, initial_arrays(), num_rounds=5, evaluate_fn=evaluate)
    assert 600 < clock.now < 700  # in round 2 alone
    assert [record.answered for record in stages(strategy)] == [4] * 2 + [3] * 8
    assert cohort._POLL_SECONDS < 600


def test_who_is_silent_is_not_asked_for_moments_outside_the_cohort(clock):
    grid = SlowGrid(clock, lambda client, message: 1e9 if client == 3 else 10.0)
    strategy = run(grid, fraction_train=0.5, seed=2)
    heads = [record for record in strategy.history if record.name == "head"]
    assert max(record.cohort for record in heads) < 4


@pytest.mark.parametrize(
    ("quorum", "answered", "over"),
    [(1.0, 9, False), (1.0, 10, True), (0.7, 6, False), (0.7, 7, True), (0.05, 0, False)],
)
def test_a_quorum_is_rounded_up(quorum, answered, over):
    waiting = Waiting(quorum)
    rest = range(10 - answered)
    assert waiting.is_over(10, answered, rest, 1.0, 1.0) is over


def test_if_all_are_silent_all_are_waited_for():
    waiting = Waiting(silent={1, 2})
    assert not waiting.is_over(2, 0, [1, 2], 1e6, 0.0)
    assert waiting.is_over(3, 1, [1, 2], 30.0, 10.0)
    assert not waiting.is_over(3, 1, [1, 2], 24.0, 10.0)
    assert not waiting.is_over(3, 1, [2, 3], 1e6, 10.0)


def test_of_a_node_the_newest_late_message_is_kept():
    waiting = Waiting()
    waiting.missed({"a": 1, "b": 2})
    waiting.missed({"c": 1})
    assert waiting.late == {"b": 2, "c": 1}
    waiting.heard("c", 1)
    assert waiting.silent == {2}
    waiting.keep([1, 3])
    assert not waiting.silent
    assert not waiting.late
    assert GuardedGrid(InProcessGrid(make_app(), 1)).waiting.quorum == 1.0
