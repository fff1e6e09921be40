"""One client's reply is forged in every way: it alone is dropped, and the record says why."""

import re

import numpy as np
import pytest
from flwr.app import Array, ConfigRecord, MetricRecord

from tests.server.test_faults import BAD, dropped, finite, forge, run
from tests.toy import SPEC, LayerwiseFedMA


def set_array(name, array):
    def change(answer):
        record = next(iter(answer.content.array_records.values()))
        record[name] = array

    return change


def array_of(value, shape=(12, 2)):
    return Array(np.full(shape, value, dtype=np.float32))


LYING_HEADER = Array("float32", (12, 2), "numpy.ndarray", Array(np.zeros((12, 2), np.float32)).data)
LYING_HEADER.data = LYING_HEADER.data.replace(b"(12, 2)", b"(99, 9)")

FORGERIES = {
    "nan": (set_array("a.weight", array_of(np.nan)), "not finite"),
    "infinity": (set_array("a.weight", array_of(np.inf)), "not finite"),
    "shape": (set_array("a.weight", array_of(0.0, (12, 3))), r"\(12, 3\).*\(12, 2\)"),
    "width": (set_array("a.bias", array_of(0.0, (11,))), r"a\.bias"),
    "dtype": (set_array("a.weight", Array(np.zeros((12, 2)))), "float64"),
    "extra": (set_array("z", array_of(0.0)), "nobody asked for"),
    "missing": (lambda m: m.content["arrays"].pop("a.bias"), r"lacks the tensors.*a\.bias"),
    "no arrays": (lambda m: m.content.pop("arrays"), "0 ArrayRecords"),
    "lying header": (set_array("a.weight", LYING_HEADER), "cannot be decoded"),
    "garbage": (
        set_array("a.weight", Array("float32", (12, 2), "numpy.ndarray", b"x" * 224)),
        "cannot be decoded",
    ),
    "pickle": (
        set_array("a.weight", Array("float32", (12, 2), "pickle", b"x" * 224)),
        "cannot be decoded",
    ),
    "absurd size": (
        set_array("a.weight", Array("float32", (2**30, 2**30), "numpy.ndarray", b"x")),
        "",
    ),
    "no report": (lambda m: m.content.pop("fedma"), "mods="),
    "version": (
        lambda m: m.content.__setitem__("fedma", ConfigRecord({"version": 99, "status": "done"})),
        "version 99",
    ),
    "token": (
        lambda m: m.content["fedma"].__setitem__("holds", "yesterday"),
        "another stage",
    ),
    "no examples": (lambda m: m.content["metrics"].pop("num-examples"), "lacks 'num-examples'"),
    "negative examples": (
        lambda m: m.content["metrics"].__setitem__("num-examples", -5),
        "num-examples",
    ),
    "nan examples": (
        lambda m: m.content["metrics"].__setitem__("num-examples", float("nan")),
        "num-examples",
    ),
    "class counts": (
        lambda m: m.content["metrics"].__setitem__("class-counts", [-1, 5]),
        "class-counts",
    ),
    "two metric records": (
        lambda m: m.content.__setitem__("more", MetricRecord({"x": 1})),
        "2 MetricRecords",
    ),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_malformed_reply_drops_its_client_alone(name):
    change, reason = FORGERIES[name]
    strategy = LayerwiseFedMA(spec=SPEC)
    result = run(strategy, forge(change))
    ((place, said),) = dropped(strategy).items()
    assert place == (1, 0, str(BAD))
    assert re.search(reason, said), said
    assert finite(result.arrays)
