"""What the log says while a run goes on."""

from types import SimpleNamespace

import pytest

from fedma_flwr.server import progress
from fedma_flwr.server.history import ExchangeRecord, History
from fedma_flwr.server.progress import Progress, WaitingNote, in_words
from fedma_flwr.testing import InProcessGrid
from tests.toy import SPEC, LayerwiseFedMA, initial_arrays, make_app


@pytest.fixture
def clock(monkeypatch, caplog):
    clock = SimpleNamespace(now=100.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(progress, "time", clock)
    caplog.set_level("INFO", logger="flwr")
    return clock


def test_each_exchange_has_one_line_with_the_time_left(clock, caplog):
    told = History(progress=Progress(rounds=2))
    told.add(ExchangeRecord(1, 0, 1, "hello", bytes_up=500_000))
    clock.now += 30
    told.add(ExchangeRecord(1, 0, 2, "local", cohort=4, answered=3, bytes_down=2_000_000))
    clock.now += 10  # 20 s an exchange so far, and two are left
    told.add(ExchangeRecord(1, 1, 2, "head", cohort=3, answered=3))
    clock.now += 20
    told.add(ExchangeRecord(2, 1, 2, "head", cohort=3, answered=3))
    assert caplog.messages == [
        "Round 1/2, stage 1/2 (local): 3 of 4 clients answered, 2.5 MB so far, about 90 s left",
        "Round 1/2, stage 2/2 (head): 3 of 3 clients answered, 2.5 MB so far, about 40 s left",
        "Round 2/2, stage 2/2 (head): 3 of 3 clients answered, 2.5 MB so far",
    ]


def test_without_a_number_of_rounds_no_time_is_told(clock, caplog):
    History().add(ExchangeRecord(3, 0, 2, "local", cohort=4, answered=3))
    assert caplog.messages == ["Round 3, stage 1/2 (local): 3 of 4 clients answered, 0.0 MB so far"]


def test_a_run_says_so_for_each_of_its_exchanges(caplog):
    caplog.set_level("INFO", logger="flwr")
    strategy = LayerwiseFedMA(spec=SPEC, fraction_evaluate=0.0)
    strategy.start(InProcessGrid(make_app(steps=0), 2), initial_arrays(), num_rounds=2)
    lines = [line for line in caplog.messages if "clients answered" in line]
    assert len(lines) == 6
    assert lines[0].startswith("Round 1/2, stage 1/3 (local): 2 of 2 clients answered, ")


def test_who_waits_is_told_now_and_then(clock, caplog):
    """Once in half a minute, and only if there is something new."""
    note = WaitingNote(10)
    for seconds, answers in ((1, 1), (40, 2), (20, 3), (20, 3), (60, 3), (1, 9)):
        clock.now += seconds
        note.see(range(answers))
    assert [line.strip() for line in caplog.messages] == [
        "2 of 10 clients have answered",
        "3 of 10 clients have answered",
        "9 of 10 clients have answered",
    ]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (99, "99 s"), (100, "2 min"), (5900, "98 min"), (7500, "2 h 5 min")],
)
def test_lengths_of_time(seconds, words):
    assert in_words(seconds) == words
