"""The in-process grid does to a client what Flower's engines do to it."""

import doctest

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedma_flwr import FedMA
from fedma_flwr.testing import FIRST_NODE_ID, InProcessGrid, SilentError, in_process_grid
from tests import toy


def make_app(train):
    app = ClientApp()
    app.train()(train)
    return app


def count(message, context):
    """Count a client's messages in its state, and answer with the number and its place."""
    calls = context.state.metric_records.get("calls", MetricRecord({"number": 0}))["number"] + 1
    context.state["calls"] = MetricRecord({"number": calls})
    metrics = MetricRecord({"calls": calls, "place": context.node_config["partition-id"]})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def ask(grid, *, place=0):
    """Send one node a message; its replies."""
    content = RecordDict({"config": ConfigRecord({"lr": 0.5})})
    return grid.send_and_receive([Message(content, grid.get_node_ids()[place], "train")])


def test_every_client_has_its_place_and_keeps_its_state():
    grid = InProcessGrid(make_app(count), 2)
    assert grid.get_node_ids() == [FIRST_NODE_ID, FIRST_NODE_ID + 1]
    answers = [ask(grid, place=place)[0].content["metrics"] for place in (0, 1, 1)]
    assert [(a["place"], a["calls"]) for a in answers] == [(0, 1), (1, 1), (1, 2)]


def test_nodes_may_have_ids_of_ones_own_and_a_run_config():
    def lr(message, context):
        metrics = MetricRecord({"lr": context.run_config["lr"]})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    grid = InProcessGrid(make_app(lr), 2, {"lr": 0.1}, node_ids=[7, 5])
    assert grid.get_node_ids() == [7, 5]
    (reply,) = ask(grid, place=1)
    assert reply.metadata.src_node_id == 5
    assert reply.content["metrics"]["lr"] == 0.1


def test_what_raises_is_an_error_reply_and_leaves_no_trace():
    def train(message, context):
        context.state["calls"] = MetricRecord({"number": 1})
        raise MemoryError("too large")

    grid = InProcessGrid(make_app(train), 1)
    (reply,) = ask(grid)
    assert "MemoryError: too large" in reply.error.reason
    assert "calls" not in grid.contexts[FIRST_NODE_ID].state


def test_what_a_client_does_to_a_message_the_server_does_not_see():
    def train(message, context):
        message.content["config"]["lr"] = 9.0
        return Message(RecordDict(), reply_to=message)

    grid = InProcessGrid(make_app(train), 1)
    message = Message(RecordDict({"config": ConfigRecord({"lr": 0.5})}), FIRST_NODE_ID, "train")
    (reply,) = grid.send_and_receive([message])
    assert not reply.has_error()
    assert message.content["config"]["lr"] == 0.5


def test_an_interceptor_answers_raises_or_lets_the_app_answer():
    def intercept(message, context):
        place = context.node_config["partition-id"]
        if place == 0:
            return Message(RecordDict({"mine": MetricRecord()}), reply_to=message)
        if place == 1:
            raise ConnectionError("lost")
        if place == 2:
            raise SilentError
        return None

    grid = InProcessGrid(make_app(count), 4, intercept=intercept)
    assert "mine" in ask(grid, place=0)[0].content
    assert ask(grid, place=1)[0].error.reason == "ConnectionError: lost"
    assert ask(grid, place=2) == []
    assert ask(grid, place=3)[0].content["metrics"]["calls"] == 1


def test_a_reply_is_there_once():
    grid = InProcessGrid(make_app(count), 1)
    (key,) = grid.push_messages([Message(RecordDict(), FIRST_NODE_ID, "train")])
    assert len(grid.pull_messages([key])) == 1
    assert grid.pull_messages([key]) == []


def test_what_an_in_process_grid_cannot_do_says_so():
    grid = InProcessGrid(make_app(count), 1)
    for refused in (lambda: grid.run, grid.create_message):
        with pytest.raises(RuntimeError):
            refused()


def test_the_documented_example():
    names = {
        "ArrayRecord": ArrayRecord,
        "FedMA": FedMA,
        "app": toy.make_app(),
        "model": toy.Net(),
        "inputs": toy.data(0)[0],
    }
    outcome = doctest.testmod(in_process_grid, extraglobs=names)
    assert outcome.attempted > 0
    assert outcome.failed == 0
