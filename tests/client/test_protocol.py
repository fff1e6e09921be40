"""What crosses: every field of a record survives, at the sizes where its form changes."""

import pytest
import torch
from flwr.app import ConfigRecord, RecordDict

from fedma_flwr import wire
from fedma_flwr.protocol import (
    VERSION,
    Instruction,
    KeptState,
    Report,
    count_bytes,
    find_instruction,
    find_report,
)
from fedma_flwr.server.messages import stage_content

UNITS = torch.tensor([2, 0, 1])


def assert_same(one, other):
    fields = dict(vars(one))
    others = dict(vars(other))
    units, others_units = fields.pop("assignments", {}), others.pop("assignments", {})
    assert fields == others
    assert units.keys() == others_units.keys()
    assert all(torch.equal(units[group], others_units[group]) for group in units)


def test_an_instruction_survives_the_wire():
    plain = Instruction("update")
    full = Instruction(
        "full", 3, 1, 4, "retrain", "n", "g", ("a",), ("b", "c"), ("d",), {"h": UNITS}, {"h": 3},
        "spec", "weights", "bfloat16", merged=True,
    )  # fmt: skip
    for instruction in (plain, full):
        assert_same(Instruction.from_record(instruction.to_record()), instruction)


def test_an_empty_record_is_of_no_version():
    assert Instruction.from_record(ConfigRecord()).version == 0
    assert Report.from_record(ConfigRecord()) == Report("", version=0)
    assert Instruction("hello").to_record()["version"] == VERSION == 3


def test_a_report_and_a_kept_state_survive():
    for report in (Report("done", "t"), Report("hello", client_key="x"), Report("lost")):
        assert Report.from_record(report.to_record()) == report
    kept = KeptState("t", "spec", {"h": UNITS}, {"h": 3})
    assert_same(KeptState.from_record(kept.to_record()), kept)


@pytest.mark.parametrize(("width", "size"), [(1, 2), (2**16, 2), (2**16 + 1, 4), (2**31, 4)])
def test_units_cross_in_two_bytes_as_long_as_they_can(width, size):
    units = torch.tensor([width - 1, 0])
    record = KeptState("t", "", {"h": units}, {"h": width}).to_record()
    assert len(record["units.h"]) == 2 * size
    assert record["units.h"] == b"".join(n.to_bytes(size, "little") for n in units.tolist())
    found = KeptState.from_record(record).assignments["h"]
    assert found.tolist() == units.tolist()
    assert found.dtype == torch.int64


def test_a_message_has_the_records_of_fedavgs_first_even_without_tensors():
    instruction = Instruction("full", arrays_key="weights", wire_dtype="float16")
    content = stage_content(instruction, {"lr": 0.5}, {}, configrecord_key="mine")
    assert list(content) == ["weights", "mine", "fedma"]
    assert len(content["weights"]) == 0
    assert dict(content["mine"]) == {"lr": 0.5}
    tensors = {"w": torch.ones(2, 2)}
    content = stage_content(instruction, {}, tensors, configrecord_key="mine")
    assert content["weights"]["w"].stype == "fedma.float16"


def test_records_of_other_kinds_are_none_of_fedmas():
    for record in (None, wire.to_arrays({"w": torch.ones(1)})):
        content = RecordDict({} if record is None else {"fedma": record})
        assert find_instruction(content) is None
        assert find_report(content) is None
    assert find_report(RecordDict({"fedma": ConfigRecord({"version": "x"})})) is None
    assert find_report(RecordDict({"fedma": ConfigRecord({"version": [1]})})) is None


def test_bytes_are_counted_for_every_message_of_one_record():
    small = RecordDict({"x": ConfigRecord({"n": 1})})
    large = RecordDict({"x": ConfigRecord({"n": "x" * 1000})})
    assert count_bytes([]) == 0
    assert count_bytes([small, small, large]) == 2 * count_bytes([small]) + count_bytes([large])
    assert count_bytes([large]) > 1000


def test_what_half_precision_is_for():
    """Weights of two axes and more, in single or double precision, and only if it is asked for."""
    cases = {
        (torch.float32, 2, "float16"): True,
        (torch.float64, 3, "bfloat16"): True,
        (torch.float32, 1, "float16"): False,
        (torch.float32, 0, "float16"): False,
        (torch.float16, 2, "bfloat16"): False,
        (torch.int64, 2, "float16"): False,
        (torch.float32, 2, "float32"): False,
    }
    for (dtype, dims, wire_dtype), halved in cases.items():
        assert wire.is_halved(dtype, dims, wire_dtype) == halved
        stype, size = wire.wire_form(dtype, (3,) * dims, wire_dtype)
        assert size == 3**dims * (2 if halved else dtype.itemsize)
        assert stype == (f"fedma.{wire_dtype}" if halved else "numpy.ndarray")
