"""Narrow clients, end to end on the in-process grid: they hold their own selection and no more."""

import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from torch import nn

from fedma_flwr import FedMA, Stage, head_moments, load_model
from fedma_flwr.averaging.head_moments import HeadMoments, upper_triangle
from fedma_flwr.averaging.ridge_regression import choose_regularisation, solve_head
from fedma_flwr.matching import IdentityMatching
from fedma_flwr.protocol import Instruction
from fedma_flwr.testing import InProcessGrid
from tests.toy import SPEC, Net, data, fit, initial_arrays, make_app, reply

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


@pytest.mark.parametrize("helper", [False, True])
def test_every_width_has_the_head_of_all_clients_that_are_at_least_so_wide(helper):
    def train(message, context, client):
        model = load_model(Net(), message)
        if helper and Stage.from_message(message).solves_head:
            records = {
                "moments": head_moments(model, [data(client)]),
                "numbers": MetricRecord({"num-examples": 60, "epochs": 0}),
            }
            return Message(RecordDict(records), reply_to=message)
        fit(model, client, 10)
        return reply(message, model, client)

    strategy = run(Watched(make_app(train)), 2, client_widths=WIDTHS)

    assert not any(record.dropped for record in strategy.history)
    for width, clients in ((0.25, range(4)), (0.5, range(3))):
        model = load_model(Net(), strategy.arrays_at(width))
        inputs, labels = (torch.cat(parts) for parts in zip(*map(data, clients), strict=True))
        if width == 0.25:  # of the half model the last client's part is estimated
            torch.testing.assert_close(head_of(model), regression(model, inputs, labels), **NEAR)
        outputs = model(inputs).argmax(1)
        assert float((outputs == labels).float().mean()) > 0.5


NEAR = {"rtol": 1e-3, "atol": 1e-3}


def head_of(model):
    return torch.cat([model.c.weight, model.c.bias[:, None]], 1).detach().double()


def regression(model, inputs, labels):
    """Ridge regression of ten times the targets on what enters the model's head."""
    phi = torch.relu(model.b(torch.relu(model.a(inputs)))).detach().double()
    targets = torch.nn.functional.one_hot(labels, 2).double()
    wide = torch.cat([phi, torch.ones(len(phi), 1)], 1)
    moments = HeadMoments(upper_triangle(phi.T @ phi), targets.T @ wide)
    weight, bias = solve_head(
        moments, bias=True, regularisation=choose_regularisation(moments, bias=True)
    )
    return 10 * torch.cat([weight, bias[:, None]], 1)


def test_a_resumed_run_with_narrow_clients_is_the_same(tmp_path):
    options = {"client_widths": WIDTHS, "checkpoint_dir": tmp_path}
    whole = run(Watched(), 3, client_widths=WIDTHS)
    run(Watched(), 2, **options)

    resumed = run(Watched(), 3, resume=True, **options)

    for width in (1.0, 0.5, 0.25):
        left, right = (s.arrays_at(width).to_torch_state_dict() for s in (whole, resumed))
        assert all(left[name].equal(right[name]) for name in left)


@pytest.mark.parametrize("averaging", ["median", "trimmed_mean", "centred_clipping"])
def test_robust_averages_go_with_narrow_clients(averaging):
    watched = Watched()

    strategy = run(watched, 2, client_widths=WIDTHS, averaging=averaging)

    assert not any(record.dropped for record in strategy.history)
    assert watched.trained["3"] == {(3, 2)}


def test_saved_matchings_go_with_narrow_clients(tmp_path):
    first, second = (run(Watched(), 3, client_widths=WIDTHS, matchings=tmp_path) for _ in range(2))

    left, right = (s.result.arrays.to_torch_state_dict() for s in (first, second))
    assert all(left[name].equal(right[name]) for name in left)


@pytest.mark.parametrize("selection", ["rolling", "random", "popular"])
def test_all_units_are_trained_by_somebody_where_no_client_is_wide(selection):
    narrow = dict.fromkeys("0123", 0.25)

    strategy = run(Watched(), 16, client_widths=narrow, width_selection=selection)

    change = strategy.result.arrays.to_torch_state_dict()["a.weight"].clone()
    change -= initial_arrays().to_torch_state_dict()["a.weight"]
    assert strategy.result.arrays["a.weight"].shape == (12, 2)
    assert bool((change.abs().sum(1) > 0).all())


def test_units_that_nobody_holds_keep_their_values():
    widths = dict.fromkeys("0123", 0.5)

    strategy = run(
        Watched(), 2, client_widths=widths, width_selection="first", matcher=IdentityMatching()
    )

    left, right = (a.to_torch_state_dict() for a in (strategy.result.arrays, initial_arrays()))
    assert left["a.weight"][6:].equal(right["a.weight"][6:])
    assert not left["a.weight"][:6].equal(right["a.weight"][:6])
