"""One reply at a time: what passes exactly at its limit, and what is refused just beyond."""

import math

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedma_flwr import wire
from fedma_flwr.averaging import LARGEST, LARGEST_INTEGER
from fedma_flwr.protocol import Report
from fedma_flwr.server.replies import Expected, read_reply
from fedma_flwr.server.reply_errors import ReplyError
from fedma_flwr.server.reply_metrics import read_weight
from fedma_flwr.structure import PermutationSpec

SPEC = PermutationSpec(
    groups={"h": 3},
    axes={
        "w": "h, 2",
        "n.running_mean": "h",
        "n.running_var": "h",
        "n.num_batches_tracked": "",
        "out": "2, h",
    },
    statistics=["n.running_mean", "n.running_var", "n.num_batches_tracked"],
)
MODEL = {
    "w": torch.ones(3, 2),
    "n.running_mean": torch.zeros(3),
    "n.running_var": torch.ones(3),
    "n.num_batches_tracked": torch.tensor(4),
    "out": torch.ones(2, 3),
}


class Reply:
    """A reply's content, without the message around it."""

    def __init__(self, content):
        self.content = content

    def has_error(self):
        return False


def read(tensors=None, metrics=None, report=None, *, uploads=("w",), spec=SPEC, **expected):
    """What the server makes of tensors and metrics; what is not given is as it should be."""
    arrays = {name: MODEL[name] for name in uploads if name in MODEL} | (tensors or {})
    arrays = {n: t if isinstance(t, Array) else wire.to_array(t) for n, t in arrays.items()}
    values = {"num-examples": 5} | (metrics or {})
    content = RecordDict(
        {
            "arrays": ArrayRecord(arrays),
            "metrics": MetricRecord({k: v for k, v in values.items() if v is not None}),
            "fedma": (report or Report("done", holds="t")).to_record(),
        }
    )
    defaults = {
        "spec": spec,
        "uploads": uploads,
        "dtypes": {name: tensor.dtype for name, tensor in MODEL.items()},
        "widths": {"h": 3},
        "max_widths": {"h": 6},
        "token": "t",
        "weighted_by_key": "num-examples",
    }
    return read_reply(Reply(content), Expected(**{**defaults, **expected}))


def beyond(number, dtype=torch.float32):
    """The next number away from zero."""
    number = torch.tensor(number, dtype=dtype)
    return float(torch.nextafter(number, number * 2))


# ---------------------------------------------------------------- values


@pytest.mark.parametrize("sign", [1, -1])
def test_no_weight_is_larger_than_the_absolute_limit(sign):
    """Whatever the cohort sends: this limit needs no others to compare with."""
    at, above = torch.ones(3, 2), torch.ones(3, 2)
    at[1, 1], above[1, 1] = sign * LARGEST, sign * beyond(LARGEST)
    assert torch.equal(read({"w": at}).update.tensors["w"], at)
    with pytest.raises(ReplyError, match=r"'w' has values beyond 1e\+09"):
        read({"w": above})


@pytest.mark.parametrize("sign", [1, -1])
def test_no_integer_is_larger_than_float64_holds_exactly(sign):
    spec = PermutationSpec({"h": 3}, {"w": "h, 2", "count": "", "out": "2, h"})

    def count(number):
        dtypes = {"w": torch.float32, "count": torch.int64}
        tensors = {"count": torch.tensor(number)}
        return read(tensors, uploads=("w", "count"), spec=spec, dtypes=dtypes)

    assert int(count(sign * LARGEST_INTEGER).update.tensors["count"]) == sign * 2**53
    with pytest.raises(ReplyError, match="'count' has values beyond"):
        count(sign * (LARGEST_INTEGER + 2))


def test_running_statistics_have_no_absolute_limit_but_variances_a_sign():
    names = ("w", "n.running_mean", "n.running_var")
    huge = {"n.running_mean": torch.full((3,), -3e38), "n.running_var": torch.full((3,), 3e38)}
    assert float(read(huge, uploads=names).update.tensors["n.running_var"][0]) > 1e38
    zero = {"n.running_var": torch.tensor([0.0, -0.0, 1.0])}
    assert not read(zero, uploads=names).update.tensors["n.running_var"][:2].any()
    tiny = {"n.running_var": torch.tensor([1.0, 1.0, -1e-45])}
    with pytest.raises(ReplyError, match=r"'n.running_var' has negative variances"):
        read(tiny, uploads=names)
    batches = {"n.num_batches_tracked": torch.tensor(2**53 + 2)}
    with pytest.raises(ReplyError, match=r"'n.num_batches_tracked' has values beyond"):
        read(batches, uploads=(*names, "n.num_batches_tracked"))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_number_that_is_none_is_enough(value):
    wrong = torch.ones(3, 2)
    wrong[2, 0] = value
    with pytest.raises(ReplyError, match="'w' is not finite"):
        read({"w": wrong})


def test_an_empty_tensor_has_no_largest_value():
    spec = PermutationSpec({"h": 3}, {"w": "h, 2", "none": "0", "out": "2, h"})
    dtypes = {"w": torch.float32, "none": torch.float32}
    tensors = {"none": torch.zeros(0)}
    found = read(tensors, uploads=("w", "none"), spec=spec, dtypes=dtypes).update
    assert found.tensors["none"].shape == (0,)


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize("width", [1, 6])
def test_a_client_may_bring_its_own_width_up_to_the_largest(width):
    found = read({"w": torch.ones(width, 2)}, widths={})
    assert found.widths == {"h": width}
    with pytest.raises(ReplyError, match=r"group 'h' is 7 units wide; at most 6 .*max_growth"):
        read({"w": torch.ones(7, 2)}, widths={})


def test_a_known_width_may_be_larger_than_that_but_no_other():
    assert read({"w": torch.ones(8, 2)}, widths={"h": 8}).widths["h"] == 8
    with pytest.raises(ReplyError, match=r"\(7, 2\)"):
        read({"w": torch.ones(7, 2)}, widths={"h": 8})


def test_data_may_be_longer_by_a_header_and_no_byte_more():
    def padded(size):
        array = wire.to_array(MODEL["w"])
        return Array(array.dtype, array.shape, array.stype, array.data.ljust(size, b"\0"))

    exact = 3 * 2 * 4
    assert torch.equal(read({"w": padded(exact + 4096)}).update.tensors["w"], MODEL["w"])
    with pytest.raises(ReplyError, match=rf"in {exact + 4097} bytes; float32 of shape"):
        read({"w": padded(exact + 4097)})
    short = wire.to_array(MODEL["w"])
    short = Array(short.dtype, short.shape, short.stype, short.data[: exact - 1])
    with pytest.raises(ReplyError, match=rf"in {exact - 1} bytes"):
        read({"w": short})


def test_a_header_of_another_version_or_kind_is_not_read():
    plain = wire.to_array(MODEL["w"])

    def refused(data):
        with pytest.raises(ReplyError, match="cannot be decoded") as error:
            read({"w": Array(plain.dtype, plain.shape, plain.stype, data)})
        return str(error.value)

    assert "unknown npy version (2, 0)" in refused(plain.data[:6] + b"\2" + plain.data[7:])
    assert "its data is int32" in refused(plain.data.replace(b"<f4", b"<i4"))
    assert "its data is float32 of shape (2, 3)" in refused(
        plain.data.replace(b"(3, 2)", b"(2, 3)")
    )
    fortran = wire.to_array(MODEL["w"]).data.replace(
        b"'fortran_order': False", b"'fortran_order': True "
    )
    read({"w": Array(plain.dtype, plain.shape, plain.stype, fortran)})  # another order is no lie


# ---------------------------------------------------------------- reports


def test_the_report_must_be_of_this_stage():
    assert read(report=Report("lost", holds="x")).update is None
    for report in (Report("done", holds="x"), Report("hello", holds="t"), Report("", holds="t")):
        with pytest.raises(ReplyError, match="for another stage"):
            read(report=report)
    with pytest.raises(match=r"version 3 .* the server 2"):
        read(report=Report("done", holds="t", version=3))


def test_a_lost_client_need_send_nothing_else():
    content = RecordDict({"fedma": Report("lost").to_record()})
    expected = Expected(SPEC, ("w",), {}, {}, {}, "t", "num-examples")
    found = read_reply(Reply(content), expected)
    assert (found.update, found.widths, dict(found.metrics)) == (None, {}, {})


# ---------------------------------------------------------------- weights and counts

MOST = 2**53


@pytest.mark.parametrize("value", [1, 0.25, MOST, float(MOST), 5e-324])
def test_examples_up_to_the_largest_exact_number_count(value):
    assert read(metrics={"num-examples": value}).update.examples == value
    assert read_weight(MetricRecord({"n": value}), "n") == float(value)


@pytest.mark.parametrize(
    "value", [0, 0.0, -1, MOST + 1, MOST + 2.0, math.nan, math.inf, [5], [], None]
)
def test_other_examples_are_refused(value):
    with pytest.raises(ReplyError, match="'num-examples'"):
        read(metrics={"num-examples": value})


@pytest.mark.parametrize("counts", [[0, 0], [MOST, 0], [float(MOST), 0.5], []])
def test_class_counts_up_to_the_largest_exact_number_count(counts):
    found = read(metrics={"class-counts": counts}).update.class_counts
    assert found.tolist() == counts
    assert found.dtype == torch.float64


@pytest.mark.parametrize(
    "counts", [[MOST + 1, 0], [3.0, MOST + 2.0], [-1, 3], [1.0, math.nan], [1.0, math.inf], 4, 4.0]
)
def test_other_class_counts_are_refused(counts):
    with pytest.raises(ReplyError, match="'class-counts' must be a list"):
        read(metrics={"class-counts": counts})


def test_a_reply_without_class_counts_has_none():
    assert read().update.class_counts is None


def test_a_bounded_client_weighs_less_in_the_metrics_too():
    found = read(metrics={"num-examples": 7, "loss": 0.5})
    same = found.weighing(found.update, "num-examples")
    assert same.metrics is found.metrics
    lighter = read(metrics={"num-examples": 3}).update
    assert dict(found.weighing(lighter, "num-examples").metrics) == {
        "num-examples": 3.0,
        "loss": 0.5,
    }


def test_records_of_the_wrong_kind_do_no_harm():
    content = RecordDict({"fedma": MetricRecord({"x": 1})})
    expected = Expected(SPEC, ("w",), {}, {}, {}, "t", "num-examples")
    with pytest.raises(match="lacks FedMA's record"):
        read_reply(Reply(content), expected)
    content = RecordDict({"fedma": ConfigRecord({"version": "two", "status": "done"})})
    with pytest.raises(match="lacks FedMA's record"):
        read_reply(Reply(content), expected)


def test_two_array_records_are_refused():
    arrays = ArrayRecord({"w": Array(np.ones((3, 2), np.float32))})
    report = Report("done", holds="t").to_record()
    records = {"fedma": report, "m": MetricRecord({"num-examples": 1}), "a": arrays, "b": arrays}
    expected = Expected(SPEC, ("w",), {}, {}, {}, "t", "num-examples")
    with pytest.raises(ReplyError, match="2 ArrayRecords instead of one"):
        read_reply(Reply(RecordDict(records)), expected)
