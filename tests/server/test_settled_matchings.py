"""A matcher that settles for less than the best says so in the record and in the log."""

from dataclasses import replace

from fedma_flwr import FedMA
from fedma_flwr.matching import BBPMAP
from fedma_flwr.server.history import ExchangeRecord
from fedma_flwr.testing import InProcessGrid
from tests.toy import SPEC, initial_arrays, make_app


class Settling(BBPMAP):
    def match(self, units, **options):
        return replace(super().match(units, **options), settled=3)


def records(matcher):
    strategy = FedMA(spec=SPEC, matcher=matcher, fraction_evaluate=0.0)
    strategy.start(InProcessGrid(make_app(), 2), initial_arrays(), num_rounds=1)
    return {record.name: record for record in strategy.history}


def test_what_is_settled_is_recorded_and_said(caplog):
    record = records(Settling())["local"]
    assert set(record.settled.values()) == {3}
    assert record.settled.keys() == record.objective.keys()
    assert "3 of its assignments are not proven the best" in caplog.text
    assert ExchangeRecord.from_json(record.to_json()) == record


def test_nothing_is_said_of_what_is_best(caplog):
    assert records(BBPMAP())["local"].settled == {}
    assert "not proven" not in caplog.text
