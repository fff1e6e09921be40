"""Narrow clients, end to end on the in-process grid: they hold their own selection and no more."""

import pytest
from flwr.app import ArrayRecord
from torch import nn

from fedma_flwr import FedMA, load_model
from fedma_flwr.protocol import Instruction
from fedma_flwr.testing import InProcessGrid
from tests.toy import SPEC, Net, fit, initial_arrays, make_app, reply

WIDTHS = {"2": 0.5, "3": 0.25}
SHAPES = {"0": (12, 8), "1": (12, 8), "2": (6, 4), "3": (3, 2)}
ALL = {"spec": SPEC, "fraction_evaluate": 0.0}


class Watched:
    """A grid that notes the widths that each client is sent, trains and sends."""

    def __init__(self, app=None, clients=4, node_widths=None, intercept=None):
        self.sent, self.trained, self.moments, self.kinds = {}, {}, {}, {}
        self.grid = InProcessGrid(app or make_app(self.train), clients, intercept=self.note)
        self.own = intercept
        self.seen = None
        for client, width in (node_widths or {}).items():
            self.grid.contexts[100 + int(client)].node_config["client-width"] = width
        self.app = self.grid.app

    def train(self, message, context, client):
        model = load_model(Net(), message)
        self.trained.setdefault(str(client), set()).add(
            (model.a.out_features, model.b.out_features)
        )
        fit(model, client, 5)
        return reply(message, model, client)

    def note(self, message, context):
        key = str(context.node_config["partition-id"])
        instruction = Instruction.from_record(message.content["fedma"])
        if instruction.kind != "hello":
            self.kinds.setdefault(key, []).append(instruction.kind)
        record = message.content.array_records.get("arrays", ArrayRecord())
        shapes = [tuple(array.shape) for array in record.values()]
        self.sent.setdefault(key, set()).update(shapes)
        return self.own(message, context) if self.own else None


def run(watched, rounds=2, **options):
    strategy = FedMA(**{**ALL, **options})
    strategy.result = strategy.start(watched.grid, initial_arrays(), num_rounds=rounds)
    return strategy


def own_init(client, message):
    a, b = SHAPES[str(client)]
    net = Net()
    net.a, net.b, net.c = nn.Linear(2, a), nn.Linear(a, b), nn.Linear(b, 2)
    return load_model(net, message)


PLANS = [
    {"groups_per_stage": 1, "head": "trained"},
    {"groups_per_stage": "all", "head": "trained"},
    {"groups_per_stage": "all", "head": "solved"},
    {"groups_per_stage": 1, "head": "solved"},
    {"one_shot": True},
]


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("selection", ["first", "popular", "rolling", "random"])
def test_a_narrow_client_is_sent_holds_and_trains_its_own_widths_alone(plan, selection):
    watched = Watched()

    strategy = run(watched, 3, client_widths=WIDTHS, width_selection=selection, **plan)

    for key, (a, b) in list(SHAPES.items())[2:]:
        assert watched.trained[key] == {(a, b)}
        allowed = {(a, 2), (a,), (b, a), (b,), (2, b), (2,)}
        assert watched.sent[key] <= allowed
    assert not any(record.dropped for record in strategy.history)
    assert [r.answered for r in strategy.history] == [4] * len(list(strategy.history))


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_own_first_weights_may_be_narrow(plan):
    trained = {}

    def train(message, context, client):
        model = own_init(client, message)
        trained.setdefault(str(client), set()).add((model.a.out_features, model.b.out_features))
        fit(model, client, 5)
        return reply(message, model, client)

    watched = Watched(make_app(train))

    strategy = run(watched, 3, initialisation="own", **plan)

    assert not any(record.dropped for record in strategy.history)
    for key in ("2", "3"):
        a, b = SHAPES[key]
        assert trained[key] == {SHAPES[key]}
        assert watched.sent[key] <= {(a, 2), (a,), (b, a), (b,), (2, b), (2,)}
    load_model(Net(), strategy.result.arrays)


def test_narrow_clients_evaluate_the_model_that_they_run():
    watched = Watched()

    strategy = run(watched, 2, client_widths=WIDTHS, fraction_evaluate=1.0)

    for key, (a, b) in list(SHAPES.items())[2:]:
        assert watched.sent[key] <= {(a, 2), (a,), (b, a), (b,), (2, b), (2,)}
        narrow = load_model(Net(), strategy.arrays_at(WIDTHS[key]))
        assert (narrow.a.out_features, narrow.b.out_features) == (a, b)
    assert strategy.arrays_at(1.0)["a.weight"].shape == strategy.result.arrays["a.weight"].shape


def test_a_width_told_by_the_node_counts_as_one_given_by_key():
    by_key, by_node = Watched(), Watched(node_widths=WIDTHS)

    ours, theirs = run(by_key, client_widths=WIDTHS), run(by_node)

    left, right = (s.result.arrays.to_torch_state_dict() for s in (ours, theirs))
    assert all(left[name].equal(right[name]) for name in left)
    assert by_key.trained == by_node.trained


def test_a_client_whose_width_changes_is_taken_as_new():
    widths = {"3": 0.25}

    def change(message, context):
        key, instruction = context.node_config["partition-id"], message.content["fedma"]
        if key == 3 and Instruction.from_record(instruction).round == 2:
            context.node_config["client-width"] = 0.5

    watched = Watched(node_widths=widths, intercept=change)

    strategy = run(watched, 3)

    assert watched.trained["3"] == {(3, 2), (6, 4)}
    assert not any(record.dropped for record in strategy.history)


def test_a_width_that_is_none_is_named():
    watched = Watched(node_widths={"1": 1.5})

    strategy = run(watched, 1)

    assert watched.trained.keys() == {"0", "2", "3"}
    assert any("'client-width'" in r.dropped.get("101", "") for r in strategy.history)
