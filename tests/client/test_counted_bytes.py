"""Bytes are counted by length; here against what serialising really gives."""

import tracemalloc

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_to_proto
from torch import nn

from fedma_flwr import wire
from fedma_flwr.protocol import Instruction, Report, count_bytes, to_arrays
from fedma_flwr.tasks.mnist import LeNet

MODELS = {
    "lenet": LeNet(),
    "lstm": nn.LSTM(8, 16, 2),
    "tiny": nn.Linear(1, 1),
    "batch norm": nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)),
    "many axes": nn.Conv3d(4, 200, 3),
}


def serialised(content):
    return len(recorddict_to_proto(content).SerializeToString())


@pytest.mark.parametrize("wire_dtype", wire.WIRE_DTYPES)
@pytest.mark.parametrize("name", MODELS)
def test_lengths_add_up_to_what_is_sent(name, wire_dtype):
    instruction = Instruction("full", assignments={"h": torch.arange(300)}, widths={"h": 400})
    content = RecordDict(
        {
            "arrays": to_arrays(MODELS[name].state_dict(), wire_dtype),
            "metrics": MetricRecord({"num-examples": 10, "losses": [0.5, 0.25]}),
            "config": ConfigRecord({"lr": 0.1, "note": "x" * 300, "flag": True}),
            "fedma": instruction.to_record(),
            "report": Report("done", "token").to_record(),
        }
    )
    assert count_bytes([content]) == serialised(content)


def test_empty_and_odd_records_are_counted_as_they_are_sent():
    empty = Array("float32", (0,), wire.NPY, b"")
    for records in (
        {},
        {"": ArrayRecord()},
        {"a": ArrayRecord({"": empty}), "b": ArrayRecord({"ä" * 99: empty})},
        {"a": ArrayRecord({"x": Array("float32", (-1, 2**30), "s", b"y" * 128)})},
    ):
        content = RecordDict(records)
        assert count_bytes([content]) == serialised(content)


def test_what_cannot_be_serialised_is_refused():
    array = to_arrays({"w": torch.ones(2)})["w"]
    for field, value in (("data", "text"), ("dtype", 3), ("shape", ("a",))):
        broken = Array(array.dtype, array.shape, array.stype, array.data)
        broken.__dict__[field] = value
        with pytest.raises((TypeError, ValueError)):
            count_bytes([RecordDict({"arrays": ArrayRecord({"w": broken})})])


def test_data_is_not_copied_to_be_counted():
    content = RecordDict({"arrays": to_arrays({"w": torch.ones(2**20)})})
    tracemalloc.start()
    assert count_bytes([content] * 3) > 3 * 2**22
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_contents_that_are_made_one_after_the_other_are_told_apart():
    def made():
        for size in range(1, 50):
            yield RecordDict({"arrays": to_arrays({"w": torch.ones(size)})})

    assert count_bytes(made()) == sum(serialised(content) for content in made())


def test_arrays_are_flowers_with_one_copy_of_the_numbers():
    for tensor in (
        torch.randn(3, 4).T,
        torch.tensor(3),
        torch.zeros(0, 5),
        torch.tensor([True, False]),
        torch.randn(2, 2, dtype=torch.float64),
    ):
        array, flowers = wire.to_array(tensor), Array(tensor.contiguous().numpy())
        for field in ("dtype", "shape", "stype", "data"):
            assert getattr(array, field) == getattr(flowers, field)
        assert torch.equal(wire.to_tensor(array), tensor)


def test_columns_first_are_read_as_they_are():
    numbers = torch.randn(3, 4).numpy().T
    array = Array(numbers)
    assert b"'fortran_order': True" in array.data
    assert torch.equal(wire.to_tensor(array), torch.tensor(numbers))
    assert wire.to_tensor(array).is_contiguous()


def test_a_tensor_that_goes_to_many_is_converted_once():
    made, tensor = {}, torch.ones(100)
    first, second = (wire.to_arrays({"w": tensor}, made=made) for _ in range(2))
    assert first["w"].data is second["w"].data
    assert first is not second
    for value in range(5):  # ids are used again
        assert torch.equal(
            wire.to_tensor(wire.to_arrays({"w": torch.full((9,), value)}, made=made)["w"]),
            torch.full((9,), value),
        )
