"""The metrics of several clients: which count, and which are left out."""

import math

import pytest
from flwr.app import MetricRecord, RecordDict

from fedma_flwr.server.evaluation import usable_evaluations
from fedma_flwr.server.history import mean_epochs
from fedma_flwr.server.reply_metrics import alike, consistent_metrics, is_finite


class Reply:
    """A reply's content, without the message around it."""

    def __init__(self, content):
        self.content = content

    def has_error(self):
        return False


def aggregated(*entries):
    return [dict(c["metrics"]) for c in consistent_metrics(MetricRecord(e) for e in entries)]


def test_nan_among_finite_metrics_is_left_out():
    good, bad = {"n": 1, "loss": 0.5}, {"n": 1, "loss": math.nan}
    assert aggregated(good, bad, bad) == [good]
    assert aggregated({"n": 1, "l": [1.0, math.inf]}, {"n": 2, "l": [1.0, 2.0]}) == [
        {"n": 2, "l": [1.0, 2.0]}
    ]
    assert aggregated({"loss": -math.inf}, {"loss": 3.0}) == [{"loss": 3.0}]


def test_if_no_clients_metrics_are_finite_all_count():
    both = aggregated({"loss": math.nan}, {"loss": math.inf})
    assert len(both) == 2
    assert math.isnan(both[0]["loss"])


def test_finite_means_neither_nan_nor_infinite_at_any_place():
    assert is_finite({"a": 0.0, "b": [1, -1e308]})
    assert is_finite({})
    for value in (math.nan, math.inf, -math.inf):
        assert not is_finite({"a": 1.0, "b": value})
        assert not is_finite({"a": [1.0, value]})


@pytest.mark.parametrize(
    ("usual", "other"),
    [
        ({"x": 1.0}, {"x": [1.0]}),  # a number, a list of one
        ({"x": [1.0]}, {"x": 1.0}),
        ({"x": [1.0, 2.0]}, {"x": [1.0]}),
        ({"x": 1.0}, {"x": 1.0, "y": 1.0}),
        ({"x": 1.0, "y": 1.0}, {"x": 1.0}),
        ({"x": 1.0}, {"y": 1.0}),
    ],
)
def test_who_sends_other_metrics_than_most_is_left_out(usual, other):
    assert alike([usual, other, usual]) == [True, False, True]
    assert aggregated(other, usual, usual) == [usual, usual]


def test_numbers_of_either_kind_and_the_order_of_names_are_alike():
    assert alike([{"x": 1, "y": 2}, {"y": 2.5, "x": 1.5}]) == [True, True]
    assert alike([]) == []
    assert aggregated() == []


def test_class_counts_are_not_aggregated():
    entries = [{"n": 1, "class-counts": [1, 2]}, {"n": 2, "class-counts": [1, 2, 3]}]
    assert aggregated(*entries) == [{"n": 1}, {"n": 2}]


def evaluations(*records):
    """Which evaluations count, and what is said of the others."""
    left_out = []
    replies = [
        Reply(RecordDict({str(i): MetricRecord(m) for i, m in enumerate(each)})) for each in records
    ]
    contents = usable_evaluations(
        replies, "n", lambda reply, reason: left_out.append((replies.index(reply), reason))
    )
    return [reply.content in contents for reply in replies], dict(left_out)


def test_evaluations_that_cannot_be_used_are_left_out_and_named():
    good = [{"n": 3, "accuracy": 0.5}]
    used, said = evaluations(
        good,
        [{"n": 3, "accuracy": math.nan}],
        [{"accuracy": 0.5}],
        [],
        good * 2,
        [{"n": 0, "accuracy": 0.5}],
        [{"n": 3, "accuracy": [0.5]}],
        good,
    )
    assert used == [True, *[False] * 6, True]
    assert list(said) == [1, 2, 3, 4, 5, 6]
    assert "not finite" in said[1]
    assert "lacks 'n'" in said[2]
    assert said[3].startswith("the reply has 0 MetricRecords")
    assert said[4].startswith("the reply has 2 MetricRecords")
    assert "above 0" in said[5]
    assert said[6] == "its metrics are not those of most clients"


@pytest.mark.parametrize(
    ("reported", "mean"),
    [
        ([1, 2.0, 6], 3.0),
        ([0, 4], 2.0),
        ([4, -1, math.nan, math.inf, [9.0], None], 4.0),
        ([None], 0.0),
        ([], 0.0),
    ],
)
def test_epochs_are_averaged_over_who_reports_a_sensible_number(reported, mean):
    entries = [{} if each is None else {"epochs": each} for each in reported]
    assert mean_epochs(entries) == mean
