"""A client trusts no server: with its memory, with its disk, or to make sense."""

import random
import tracemalloc

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from fedma_flwr import fedma_mod
from fedma_flwr.protocol import Instruction, KeptState, find_report, to_arrays
from fedma_flwr.reading import plain
from fedma_flwr.structure import PermutationSpec
from fedma_flwr.tasks.local_models import VARIABLE, local_models_folder
from fedma_flwr.testing import InProcessGrid
from tests.toy import CLIENTS, SPEC, LayerwiseFedMA, initial_arrays, make_app

WIDE = PermutationSpec({"g": 12, "h": 8}, {"a": "g, 2", "b": "h, g", "c": "2, h"})
OWN = {"a": torch.ones(12, 2), "b": torch.ones(8, 12), "c": torch.ones(2, 8)}
UNITS = torch.arange(12)


@pytest.fixture(autouse=True)
def _run():
    """Flower makes no messages outside a run."""
    InProcessGrid(make_app(), 1)


def holding(tensors=OWN, size=0, **node_config):
    """The context of a client that has done a round's first stage."""
    context = Context(1, 100, node_config, RecordDict(), {})
    context.state["fedma.state"] = KeptState("t", WIDE.to_json(), size=size).to_record()
    context.state["fedma.arrays"] = to_arrays(tensors)
    return context


def answer(record, arrays=None, context=None):
    content = {"fedma": record if isinstance(record, ConfigRecord) else record.to_record()}
    if arrays is not None:
        content["arrays"] = arrays if isinstance(arrays, ArrayRecord) else to_arrays(arrays)
    message = Message(RecordDict(content), 100, "train")

    def train(received, _):
        records = list(received.content.array_records.values()) or [to_arrays(OWN)]
        metrics = MetricRecord({"num-examples": 3})
        return Message(RecordDict({"w": records[0], "m": metrics}), reply_to=received)

    return fedma_mod(message, context or holding(), train)


def update(width, **fields):
    return Instruction(
        "update", 1, 1, 3, "retrain", "t", "u", uploads=("c",),
        assignments={"g": UNITS}, widths={"g": width}, **fields,
    )  # fmt: skip


@pytest.mark.parametrize("width", [5 * 10**7, 2**32, 12 * 40])
@pytest.mark.parametrize("settled", [True, False])
def test_a_width_that_the_model_cannot_have_costs_no_memory(width, settled):
    """Whether the message has no array of that width, or one that takes no bytes for it."""
    arrays = None
    if settled and width == 12 * 40:
        arrays = {"a": torch.ones(width, 2)}
    elif settled:
        header = np.lib.format
        data = header.magic(1, 0)
        text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({width}, 0), }}\n".encode()
        data += len(text).to_bytes(2, "little") + text
        claimed = Array(
            "float32", (width, 0), "numpy.ndarray", data + len(text).to_bytes(2, "little") + text
        )
        arrays = ArrayRecord({"a": claimed})
    tracemalloc.start()
    reply = answer(update(width), arrays)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(reply.error.reason) < 600
    assert peak < 2e6


def test_it_may_grow_as_far_as_the_nodes_config_lets_it():
    for times, node, fine in ((16, {}, True), (40, {}, False), (40, {"max-growth": 60}, True)):
        width = 12 * times
        reply = answer(update(width), {"a": torch.ones(width, 2)}, holding(**node))
        assert reply.has_error() != fine
    assert (
        "larger max-growth in its --node-config"
        in answer(update(480), {"a": torch.ones(480, 2)}).error.reason
    )
    for odd in ("x", 0.5, True, float("nan")):
        reply = answer(update(12), {"a": torch.ones(12, 2)}, holding(**{"max-growth": odd}))
        assert "max-growth" in reply.error.reason


def test_it_cannot_grow_little_by_little():
    """The bytes that count are those that the model had in the beginning."""
    context = holding(size=4 * (24 + 96 + 16))
    grown = {"a": torch.ones(144, 2), "b": torch.ones(8, 144), "c": torch.ones(2, 8)}
    context.state["fedma.arrays"] = to_arrays(grown)
    instruction = Instruction(
        "update", 1, 1, 3, "retrain", "t", "u", uploads=("c",),
        assignments={"g": torch.arange(144)}, widths={"g": 1440},
    )  # fmt: skip
    assert (
        "asks for a model" in answer(instruction, {"a": torch.ones(1440, 2)}, context).error.reason
    )


def test_the_size_that_counts_is_kept_from_the_first_message_on():
    context = holding()
    full = Instruction("full", 1, 0, 3, gives="t", uploads=("a",), spec=WIDE.to_json())
    answer(full, OWN, context)
    assert context.state["fedma.state"]["size"] == 4 * (24 + 96 + 16)
    assert not answer(update(24), {"a": torch.ones(24, 2)}, context).has_error()
    assert context.state["fedma.state"]["size"] == 4 * (24 + 96 + 16)


def test_widths_must_be_those_of_the_arrays():
    assert "needs (24, 2)" in answer(update(24), {"a": torch.ones(20, 2)}).error.reason


FULL = {"kind": "full", "round": 1, "stages": 3, "gives": "u", "spec": WIDE.to_json()}
ODD = {
    "units twice": {**FULL, "width.g": 12, "units.g": bytes(4)},
    "units beyond": {**FULL, "width.g": 1, "units.g": b"\x01\x00"},
    "half a unit": {**FULL, "width.g": 12, "units.g": b"\x01"},
    "no units": {**FULL, "width.g": 12},
    "no such group": {**FULL, "width.x": 12, "units.x": b""},
    "infinite width": {**FULL, "width.g": float("inf"), "units.g": b""},
    "infinite version": {**FULL, "version": float("inf")},
    "infinite stage": {**FULL, "stage": float("inf")},
    "names that are a number": {**FULL, "uploads": 5},
    "names that are numbers": {**FULL, "settled": [1, 2]},
    "uploads of none": {**FULL, "uploads": ["zzz"] * 10_000},
    "a deep spec": {**FULL, "spec": "[" * 100_000},
    "a long spec": {**FULL, "spec": "x" * 10**6},
    "no spec": {**FULL, "spec": ""},
    "no kind": {**FULL, "kind": "x" * 10**6},
    "a list for a kind": {**FULL, "kind": [1.0] * 1000},
    "a spec of huge groups": {
        **FULL, "spec": WIDE.to_json().replace('"size":12', '"size":50000000'),
        "width.g": 50_000_000, "units.g": np.arange(12, dtype="<u4").tobytes(), "stage": 1,
    },
    "moments of everything": {**FULL, "head-module": "b\n\x1b[2J" * 1000},
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_malformed_instructions_end_in_a_short_error(name):
    reply = answer(ConfigRecord({"version": 3, **ODD[name]}), OWN)
    assert reply.has_error()
    assert 10 < len(reply.error.reason) <= 1100
    assert reply.error.reason.isprintable()


def test_moments_may_not_take_what_the_model_does_not_allow():
    spec = PermutationSpec({"g": 2}, {"a": "g, 3", "c.weight": "2, 40000 x g"})
    instruction = Instruction(
        "full", 1, 2, 3, gives="u", spec=spec.to_json(), head_module="c",
        assignments={"g": torch.arange(2)}, widths={"g": 2},
    )  # fmt: skip
    tensors = {"a": torch.ones(2, 3), "c.weight": torch.ones(2, 80000)}
    assert "asks for moments" in answer(instruction, tensors).error.reason


def test_arrays_that_lie_about_themselves_are_refused():
    honest = Array(np.ones((12, 2), dtype=np.float32))
    huge = honest.data.replace(b"(12, 2)", b"(10**9,)"[:7]).replace(b"12, 2", b"99999")
    for array in (
        Array("float32", (12, 2), "numpy.ndarray", b""),
        Array("float32", (12, 2), "numpy.ndarray", huge),
        Array("float32", (12, 2), "numpy.ndarray", honest.data[:-1]),
        Array("float32", (10**12, 0), "fedma.float16", b""),
        Array("float32", (12, 2), "fedma.float16", b"\x00" * 4),
        Array("object", (12, 2), "fedma.bfloat16", b"\x00" * 48),
        Array("float32", (12, 2), "pickle", honest.data),
        Array(np.array(["text"])),
    ):
        record = ArrayRecord({**to_arrays(OWN), "a": array})
        reply = answer(ConfigRecord({"version": 3, **FULL}), record)
        assert reply.has_error(), array
        assert len(reply.error.reason) <= 1100


VALUES = [
    0, 1, -1, 3, 2**31, 2**63 - 1, -(2**63), 0.5, float("inf"), float("nan"), True, False, "", "x",
    "t", "full", "update", "hello", "a", "\x00", "x" * 5000, b"", b"\x00\x00", b"\xff" * 7, [], [1],
    [0.5], ["a"], ["a", "a"], ["zzz"], [True], [b"x"], WIDE.to_json(), "{}", "[]", "null",
]  # fmt: skip
KEYS = [*update(12).to_record(), *FULL, "estimates", "wire-dtype", "merged", "arrays-key"]
KEYS += ["head-module", "head-expected", "width.h", "units.h", "width.zzz", "units.zzz", "width."]


def test_random_instructions_end_in_a_report_or_a_short_error():
    """Records that are nearly right, and records of anything."""
    generator = random.Random(0)
    ends = {"error": 0, "done": 0, "lost": 0, "hello": 0}
    for number in range(3000):
        start = [update(12).to_record(), ConfigRecord({"version": 3, **FULL}), ConfigRecord()]
        values = dict(start[number % 3])
        for _ in range(generator.randint(0, 3 if number % 3 < 2 else 12)):
            values[generator.choice(KEYS)] = generator.choice(VALUES)
        arrays = generator.choice([None, OWN, {"a": torch.ones(12, 2)}, {"zzz": torch.ones(1)}])
        reply = answer(ConfigRecord(values), arrays)
        if reply.has_error():
            assert 0 < len(reply.error.reason) <= 1100
            ends["error"] += 1
        else:
            ends[find_report(reply.content).status] += 1
    assert all(ends.values())  # every end was reached


def test_a_run_of_honest_clients_is_not_touched():
    strategy = LayerwiseFedMA(spec=SPEC, initialisation="own", fraction_evaluate=0.0)
    strategy.start(InProcessGrid(make_app(), CLIENTS), initial_arrays(), num_rounds=3)
    assert [record.dropped for record in strategy.history if record.dropped] == []


def test_somebody_elses_words_are_short_and_on_one_line():
    assert plain("a\nb\x1b[2J\u2028é") == "a\\nb\\x1b[2J\\u2028é"
    assert plain("x" * 500) == "x" * 500
    assert plain("x" * 501) == "x" * 500 + "..."
    assert plain("\n" * 10, 10) == "\\n" * 5 + "..."


# ---------------------------------------------------------------- local models


def folder(asked, **node):
    return local_models_folder({"local-models": asked}, node)


def test_local_models_are_kept_within_the_nodes_folder_alone(tmp_path, monkeypatch):
    own, outside = tmp_path / "own", tmp_path / "outside"
    for path in (own, outside):
        path.mkdir()
    (own / "link").symlink_to(outside)
    node = {"local-models": str(own)}
    assert folder("", **node) is None
    assert folder("run-1/seed-0", **node) == own / "run-1" / "seed-0"
    assert folder(str(own / "run-1"), **node) == own / "run-1"
    for asked in (str(outside), "..", "run/../../outside", "link/x", "/", str(tmp_path)):
        with pytest.raises(RuntimeError, match="outside of this node's folder"):
            folder(asked, **node)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folder("x", **{"local-models": "~/own"}) == own / "x"
    for nothing in ({}, {"local-models": ""}, {"local-models": 3}):
        with pytest.raises(RuntimeError, match=r"names no folder.*--node-config"):
            folder("x", **nothing)
    monkeypatch.setenv(VARIABLE, str(own))
    assert folder("x") == own / "x"
