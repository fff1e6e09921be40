"""`fedma_mod` one message at a time: what is handed on, kept, and refused."""

import pytest
import torch
from flwr.app import Array, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict

from fedma_flwr import fedma_mod
from fedma_flwr.client_state import merge, read_kept
from fedma_flwr.protocol import Instruction, KeptState, find_report, to_arrays, to_tensors
from fedma_flwr.structure import PermutationSpec
from fedma_flwr.testing import InProcessGrid
from tests.toy import make_app

SPEC = PermutationSpec(groups={"h": 2}, axes={"a": "h, 1", "b": "h", "c": "1, h"})
TENSORS = {"a": torch.tensor([[1.0], [2.0]]), "b": torch.tensor([3.0, 4.0]), "c": torch.ones(1, 2)}


@pytest.fixture(autouse=True)
def _run():
    """Flower makes no messages outside a run."""
    InProcessGrid(make_app(), 1)


def make_context(**node_config):
    return Context(1, 100, node_config, RecordDict(), {})


def send(instruction, tensors=None, context=None, train=None, key="arrays"):
    """What the mod replies, and what the train function was given."""
    seen = []

    def call_next(received, _):
        seen.append(received)
        return train(received) if train else echo(received)

    content = {"fedma": instruction.to_record(), "config": ConfigRecord({"lr": 0.5})}
    if tensors:
        content[key] = to_arrays(tensors)
    received = Message(RecordDict(content), 100, "train")
    return fedma_mod(received, context or make_context(), call_next), seen


def echo(received, change=None, records=1, metrics=1):
    """A train function that sends back what it got, or what `change` makes of it."""
    arrays = next(iter(received.content.array_records.values()))
    tensors = to_tensors(arrays)
    if change:
        change(tensors)
    content = {f"arrays{i or ''}": to_arrays(tensors) for i in range(records)}
    content |= {f"metrics{i or ''}": MetricRecord({"num-examples": 3}) for i in range(metrics)}
    return Message(RecordDict(content), reply_to=received)


FULL = Instruction(
    "full", round=1, stages=2, gives="t.1.0", uploads=("a", "b"), spec=SPEC.to_json()
)


def test_a_full_message_is_handed_on_kept_and_stripped():
    context = make_context()
    reply, seen = send(FULL, TENSORS, context)
    assert seen[0].content["fedma"]["merged"] is True
    assert to_tensors(seen[0].content["arrays"]).keys() == TENSORS.keys()
    assert seen[0].content["config"]["lr"] == 0.5
    assert list(reply.content["arrays"]) == ["a", "b"]
    assert dict(reply.content["metrics"]) == {"num-examples": 3}
    report = find_report(reply.content)
    assert (report.status, report.holds) == ("done", "t.1.0")
    kept = to_tensors(context.state["fedma.arrays"])
    assert all(torch.equal(kept[name], tensor) for name, tensor in TENSORS.items())
    assert context.state["fedma.state"]["token"] == "t.1.0"


def test_arrays_may_have_another_name():
    instruction = Instruction(
        "full", gives="t", uploads=("a",), spec=SPEC.to_json(), arrays_key="weights"
    )
    reply, seen = send(instruction, TENSORS, key="weights")
    assert list(seen[0].content.array_records) == ["weights"]
    assert list(reply.content["arrays"]) == ["a"]


@pytest.mark.parametrize("holds", [None, "t.1.0", "x"])
def test_an_update_needs_the_state_that_it_names(holds):
    context = make_context()
    if holds is not None:
        context.state["fedma.state"] = KeptState(holds, SPEC.to_json()).to_record()
        context.state["fedma.arrays"] = to_arrays(TENSORS)
    update = Instruction("update", stage=1, stages=2, needs="t.1.0", gives="t.1.1", uploads=("c",))
    reply, seen = send(update, None, context)
    report = find_report(reply.content)
    if holds == "t.1.0":
        assert (report.status, report.holds) == ("done", "t.1.1")
    else:
        assert seen == []
        assert (report.status, report.holds) == ("lost", holds or "")
        assert list(reply.content) == ["fedma"]


def test_half_of_the_state_is_none():
    """A token without arrays, or arrays without a token, says nothing."""
    for keep in ("fedma.state", "fedma.arrays"):
        context = make_context()
        context.state["fedma.state"] = KeptState("t", SPEC.to_json()).to_record()
        context.state["fedma.arrays"] = to_arrays(TENSORS)
        for other in {"fedma.state", "fedma.arrays"} - {keep}:
            del context.state[other]
        reply, _ = send(Instruction("update", needs="t"), None, context)
        assert find_report(reply.content).status == "lost"


def test_a_hello_is_answered_with_the_first_key_there_is():
    def key(**node_config):
        reply, seen = send(Instruction("hello"), context=make_context(**node_config))
        assert seen == []
        return find_report(reply.content).client_key

    both = {"client-key": "x", "partition-id": 3}
    assert key(**both) == "x"
    assert key(**{"partition-id": 3}) == "3"
    assert key() == "100"


def test_messages_of_others_pass_untouched():
    received = Message(RecordDict({"arrays": to_arrays(TENSORS)}), 100, "train")
    answer = object()
    context = make_context()
    assert fedma_mod(received, context, lambda m, c: answer if m is received else None) is answer
    assert list(context.state) == []


@pytest.mark.parametrize(("records", "metrics"), [(0, 1), (2, 1), (1, 0), (1, 2)])
def test_a_reply_must_have_one_record_of_either_kind(records, metrics):
    reply, _ = send(FULL, TENSORS, train=lambda m: echo(m, None, records, metrics))
    assert f"{records} ArrayRecords and {metrics} MetricRecords" in reply.error.reason


def test_settled_tensors_must_come_back_as_they_were():
    instruction = Instruction(
        "full", stage=1, gives="t", settled=("a", "b"), uploads=("c",), spec=SPEC.to_json()
    )
    reply, _ = send(instruction, TENSORS, train=lambda m: echo(m, lambda t: t["b"].add_(1e-6)))
    assert "settled tensor 'b' was changed by the train function" in reply.error.reason
    reply, _ = send(instruction, TENSORS, train=lambda m: echo(m, lambda t: t["c"].add_(1.0)))
    assert find_report(reply.content).status == "done"


def test_what_is_not_settled_must_come_back():
    instruction = Instruction(
        "full", stage=1, gives="t", settled=("a", "b"), uploads=("c",), spec=SPEC.to_json()
    )
    reply, _ = send(instruction, TENSORS, train=lambda m: echo(m, lambda t: t.pop("c")))
    assert "reply lacks the tensors ['c']" in reply.error.reason
    assert "personal=('c',)" in reply.error.reason


def test_who_sends_only_what_requires_a_gradient_may_leave_out_what_is_frozen():
    instruction = Instruction(
        "full", stage=1, gives="t", settled=("a", "b"), uploads=("c",), spec=SPEC.to_json()
    )
    context = make_context()
    reply, _ = send(instruction, TENSORS, context, train=lambda m: echo(m, lambda t: t.pop("b")))
    assert find_report(reply.content).status == "done"
    assert list(reply.content["arrays"]) == ["c"]
    _, kept = read_kept(context)
    assert torch.equal(kept["b"], TENSORS["b"])


def test_a_train_function_may_not_change_widths():
    def grow(tensors):
        tensors.update({"a": torch.ones(3, 1), "b": torch.ones(3), "c": torch.ones(1, 3)})

    context = make_context()
    reply, _ = send(FULL, TENSORS, context, train=lambda m: echo(m, grow))
    assert reply.has_error()
    assert list(context.state) == []  # what failed leaves no trace


def test_own_weights_may_have_any_widths_that_fit_together():
    def train(received):
        tensors = {"a": torch.ones(3, 1), "b": torch.ones(3), "c": torch.ones(1, 3)}
        records = {"arrays": to_arrays(tensors), "metrics": MetricRecord({"num-examples": 1})}
        return Message(RecordDict(records), reply_to=received)

    reply, _ = send(FULL, None, train=train)
    assert to_tensors(reply.content["arrays"])["a"].shape == (3, 1)

    def unfit(received):
        tensors = {"a": torch.ones(3, 1), "b": torch.ones(2), "c": torch.ones(1, 3)}
        records = {"arrays": to_arrays(tensors), "metrics": MetricRecord({"num-examples": 1})}
        return Message(RecordDict(records), reply_to=received)

    reply, _ = send(FULL, None, train=unfit)
    assert reply.has_error()


def test_an_error_of_the_train_function_is_handed_on_and_what_it_raises_is_told():
    error = Error(7, "mine")
    reply, _ = send(FULL, TENSORS, train=lambda m: Message(error, reply_to=m))
    assert (reply.error.code, reply.error.reason) == (7, "mine")

    def fail(received):
        raise ZeroDivisionError("no batches")

    reply, _ = send(FULL, TENSORS, train=fail)
    assert reply.error.reason == "ZeroDivisionError: no batches"


def test_a_reply_crosses_in_the_precision_that_was_asked_for():
    instruction = Instruction(
        "full", gives="t", uploads=("a", "b"), spec=SPEC.to_json(), wire_dtype="bfloat16"
    )
    context = make_context()
    reply, _ = send(instruction, {**TENSORS, "a": torch.tensor([[1 / 3], [2.0]])}, context)
    assert reply.content["arrays"]["a"].stype == "fedma.bfloat16"
    assert isinstance(reply.content["arrays"]["b"], Array)
    assert reply.content["arrays"]["b"].stype == "numpy.ndarray"
    # What the client keeps is not rounded.
    assert to_tensors(context.state["fedma.arrays"])["a"][0, 0] == torch.tensor(1 / 3)


# ---------------------------------------------------------------- merging

KEPT = KeptState("t", SPEC.to_json(), {"h": torch.tensor([2, 0])}, {"h": 3})


def test_a_new_round_takes_a_client_back_to_its_own_units():
    wide = {
        "a": torch.tensor([[1.0], [2.0], [3.0]]),
        "b": torch.tensor([1.0, 2.0, 3.0]),
        "c": torch.tensor([[1.0, 2.0, 3.0]]),
    }
    head = {"c": torch.tensor([[7.0, 8.0, 9.0]])}
    state, merged = merge(Instruction("update", stage=0, gives="u"), KEPT, wide, head)
    assert merged["a"].tolist() == [[3.0], [1.0]]
    assert merged["c"].tolist() == [[9.0, 7.0]]
    assert (state.token, state.spec, state.assignments, state.widths) == ("u", KEPT.spec, {}, {})


def test_a_later_stage_expands_what_is_not_settled_and_remembers_all_assignments():
    spec = PermutationSpec({"g": 2, "h": 2}, {"a": "g, 1", "b": "h, g", "c": "1, h"})
    kept = KeptState("t", spec.to_json(), {"g": torch.tensor([0, 1])}, {"g": 2})
    own = {"a": torch.ones(2, 1), "b": torch.eye(2), "c": torch.tensor([[5.0, 6.0]])}
    new = {"b": torch.full((3, 2), 9.0)}
    instruction = Instruction(
        "update", stage=2, gives="u", assignments={"h": torch.tensor([2, 0])}, widths={"h": 3}
    )
    state, merged = merge(instruction, kept, own, new)
    assert merged["b"] is new["b"]
    assert merged["c"].tolist() == [[6.0, 0.0, 5.0]]
    assert {name: units.tolist() for name, units in state.assignments.items()} == {
        "g": [0, 1],
        "h": [2, 0],
    }
    assert state.widths == {"g": 2, "h": 3}


def test_a_full_message_leaves_nothing_of_what_was_kept():
    instruction = Instruction("full", gives="u", spec="S", assignments={}, widths={})
    state, merged = merge(instruction, KEPT, TENSORS, {"a": torch.zeros(1)})
    assert (state.token, state.spec, state.assignments) == ("u", "S", {})
    assert list(merged) == ["a"]
