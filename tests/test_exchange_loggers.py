"""Figures of exchanges for the loggers that people use."""

import re
from types import SimpleNamespace

import pytest

from fedma_flwr.exchange_loggers import figures, to_mlflow, to_tensorboard, to_wandb
from fedma_flwr.server.history import ExchangeRecord
from fedma_flwr.testing import InProcessGrid
from tests.toy import SPEC, LayerwiseFedMA, initial_arrays, make_app

RECORD = ExchangeRecord(
    2, 0, 2, "local", cohort=4, answered=3, dropped={"7": "late"}, bytes_up=5, widths={"a": 9}
)


class Lists:
    """Keeps what it is given, by each of the three interfaces."""

    def __init__(self):
        self.seen = []

    def add_scalar(self, name, value, step):
        self.seen.append((name, value, step))

    def flush(self):
        self.seen.append("flushed")

    def log_metrics(self, values, step):
        self.seen.append((values, step))

    def log(self, values, step):
        self.seen.append((values, step))


def test_the_numbers_of_an_exchange():
    found = figures(RECORD)
    assert (found["round"], found["answered"], found["dropped"]) == (2.0, 3.0, 1.0)
    assert found["width/a"] == 9.0
    assert "name" not in found


@pytest.mark.parametrize("name", ["a:b", "x\ny", "<b>", "naïve", "a" * 5])
def test_names_and_values_of_clients_do_no_harm(name):
    record = ExchangeRecord(1, 0, 1, "x", metrics={name: 1.0, "nan": float("nan"), "list": [1.0]})
    metrics = [key for key in figures(record) if key.startswith("metric/")]
    assert len(metrics) == 1
    assert re.fullmatch(r"[\w./ -]+", metrics[0])


def test_each_logger_gets_them_with_the_number_of_the_exchange():
    for make in (to_mlflow, to_wandb):
        logger = Lists()
        on_exchange = make(logger)
        on_exchange(RECORD)
        on_exchange(RECORD)
        assert logger.seen == [(figures(RECORD), 1), (figures(RECORD), 2)]
    logger = Lists()
    to_tensorboard(logger)(RECORD)
    assert ("fedma/answered", 3.0, 1) in logger.seen
    assert logger.seen[-1] == "flushed"


def test_a_logger_that_fails_ends_no_run(caplog):
    def log(values, step):
        raise ConnectionError("its server is away")

    strategy = LayerwiseFedMA(
        spec=SPEC, fraction_evaluate=0.0, on_exchange=to_wandb(SimpleNamespace(log=log))
    )
    strategy.start(InProcessGrid(make_app(steps=0), 2), initial_arrays(), num_rounds=1)
    assert len(strategy.history.exchanges) == 4
    assert "Exchange 1 was not logged: ConnectionError: its server is away" in caplog.text
