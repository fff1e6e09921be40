"""Replies that wait on disk: the same results, no file left, and a full disk ends nothing."""

import errno
import os
import sys

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, RecordDict

from fedma_flwr import FedAvg, FedMA, wire
from fedma_flwr.server import round as round_module
from fedma_flwr.server import spill
from fedma_flwr.server.spill import Spill
from fedma_flwr.testing import InProcessGrid
from tests.toy import SPEC, LayerwiseFedMA, initial_arrays, make_app

CLIENTS = 6


def record(*tensors):
    return RecordDict({"arrays": wire.to_arrays({str(i): t for i, t in enumerate(tensors)})})


def tensors_of(content):
    return [wire.to_tensor(array) for array in content["arrays"].values()]


@pytest.fixture
def everything_spills(monkeypatch):
    """Replies of any size go to disk, from the first one on."""
    monkeypatch.setattr(spill, "IN_MEMORY", 0)
    monkeypatch.setattr(spill, "_LEAST", 0)


@pytest.mark.usefixtures("everything_spills")
def test_what_is_on_disk_is_read_as_it_was(tmp_path):
    sent = [torch.randn(70, 100), torch.zeros(()), torch.arange(5), torch.zeros(0, 3)]
    sent += [torch.randn(3, 3).double()]
    contents = [record(*sent), record(*reversed(sent))]
    place = Spill(tmp_path)
    for content in contents:
        place.put(content)
    assert all(isinstance(a.data, memoryview) for c in contents for a in c["arrays"].values())
    assert os.listdir(tmp_path) == []  # the file has no name
    place.begin()
    for content, expected in zip(contents, (sent, sent[::-1]), strict=True):
        for found, tensor in zip(tensors_of(content), expected, strict=True):
            assert found.dtype == tensor.dtype
            assert torch.equal(found, tensor)
        assert [a.numpy().shape for a in content["arrays"].values()] == [t.shape for t in expected]


@pytest.mark.usefixtures("everything_spills")
def test_who_changes_a_tensor_changes_nobody_elses(tmp_path):
    place, content = Spill(tmp_path), record(torch.ones(4))
    place.put(content)
    first, again = tensors_of(content)[0], tensors_of(content)[0]
    first[:] = 2.0  # the same pages
    assert again.tolist() == [2.0] * 4
    other = record(torch.ones(4))
    place.put(other)
    assert tensors_of(other)[0].tolist() == [1.0] * 4


def test_little_stays_in_memory(tmp_path):
    place = Spill(tmp_path, in_memory=3 * 4 * 10_000)
    contents = [record(torch.randn(10_000)) for _ in range(4)]
    for content in contents:
        place.put(content)
    kinds = [type(content["arrays"]["0"].data) for content in contents]
    assert kinds == [bytes, bytes, memoryview, memoryview]  # numpy's headers count
    small = record(torch.ones(3))
    place.put(small)
    assert type(small["arrays"]["0"].data) is bytes
    place.begin()
    place.put(again := record(torch.randn(10_000)))
    assert type(again["arrays"]["0"].data) is bytes


def test_without_a_folder_everything_stays_in_memory():
    place, content = Spill(None, in_memory=0), record(torch.randn(10_000))
    place.put(content)
    assert type(content["arrays"]["0"].data) is bytes


def run(strategy, clients=CLIENTS):
    grid = InProcessGrid(make_app(), clients)
    return strategy.start(grid, initial_arrays(), num_rounds=2)


STRATEGIES = {
    "default": lambda **o: FedMA(spec=SPEC, **o),
    "layerwise": lambda **o: LayerwiseFedMA(spec=SPEC, **o),
    "own weights": lambda **o: LayerwiseFedMA(spec=SPEC, initialisation="own", **o),
    "robust": lambda **o: FedMA(spec=SPEC, averaging="centred_clipping", **o),
    "half precision": lambda **o: FedMA(spec=SPEC, wire_dtype="float16", **o),
    "fedavg": FedAvg,
}


@pytest.mark.usefixtures("everything_spills")
@pytest.mark.parametrize("make", STRATEGIES.values(), ids=STRATEGIES)
def test_a_run_gives_the_same_to_the_last_bit(make, tmp_path):
    from_disk, from_memory = run(make(spill_dir=tmp_path)), run(make())
    assert from_disk.arrays.keys() == from_memory.arrays.keys()
    for name, array in from_memory.arrays.items():
        assert from_disk.arrays[name].data == array.data
    assert os.listdir(tmp_path) == []


def lies_in_a_file(tensor):
    """Whether the memory of a tensor is a file's that has no name any more."""
    address = tensor.data_ptr()
    with open("/proc/self/maps", encoding="utf-8") as maps:
        for line in maps:
            start, end = (int(number, 16) for number in line.split(" ", 1)[0].split("-"))
            if start <= address < end:
                return "(deleted)" in line
    return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.usefixtures("everything_spills")
@pytest.mark.parametrize("clients", [4, 40])
def test_no_tensor_of_a_cohort_is_in_memory_when_a_stage_is_settled(clients, tmp_path, monkeypatch):
    settle, seen = round_module.settle_stage, []

    def looking(spec, stage, updates, **options):
        seen.extend(lies_in_a_file(t) for u in updates for t in u.tensors.values() if t.numel())
        return settle(spec, stage, updates, **options)

    monkeypatch.setattr(round_module, "settle_stage", looking)
    run(FedMA(spec=SPEC, spill_dir=tmp_path), clients)
    assert len(seen) >= clients
    assert all(seen)


@pytest.mark.usefixtures("everything_spills")
@pytest.mark.parametrize("place", ["output_dir", "checkpoint_dir"])
def test_a_run_with_a_folder_needs_no_other(place, tmp_path, monkeypatch):
    put, folders = Spill.put, set()

    def looking(self, content):
        folders.add(self.folder)
        put(self, content)

    monkeypatch.setattr(Spill, "put", looking)
    run(FedMA(spec=SPEC, **{place: tmp_path / "run"}))
    assert folders == {tmp_path / "run"}
    folders.clear()
    run(FedMA(spec=SPEC, **{place: tmp_path / "other"}, spill_dir=tmp_path / "spill"))
    assert folders == {tmp_path / "spill"}


@pytest.mark.usefixtures("everything_spills")
def test_a_full_disk_costs_memory_and_a_warning(tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    caplog.set_level("WARNING", logger="flwr")
    result = run(FedMA(spec=SPEC, spill_dir=tmp_path))
    assert all(np.isfinite(array.numpy()).all() for array in result.arrays.values())
    assert sum("Replies stay in memory" in text for text in caplog.messages) == 1


def test_a_folder_that_cannot_be_is_refused_by_name(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="spill_dir"):
        run(FedMA(spec=SPEC, spill_dir=tmp_path / "file" / "folder"))


@pytest.mark.usefixtures("everything_spills")
def test_a_hostile_array_on_disk_is_refused_as_one_in_memory_is(tmp_path):
    content = RecordDict(
        {"arrays": ArrayRecord({"0": Array("float32", (2, 2), wire.NPY, b"x" * 300)})}
    )
    Spill(tmp_path).put(content)
    with pytest.raises(ValueError):  # noqa: PT011 (numpy's words)
        tensors_of(content)
