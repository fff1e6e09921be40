"""Personal tensors stay with their client; what names none of them is refused."""

import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.exception import AggregationError

from fedma_flwr import load_model
from tests.server.personal import CLIENTS, Net, make_strategy, run
from tests.toy import fit, reply


def test_they_cross_once_and_are_never_sent_back():
    down, up = [], []

    def watch(message, context):
        for record in message.content.array_records.values():
            if record:  # a hello's is empty
                down.append((context.node_id, message.metadata.message_type, set(record)))

    def train(message, context, client):
        model = load_model(Net(), message)
        fit(model, client)
        return reply(message, model, client)

    def spy(message, context, call_next):
        reply = call_next(message, context)
        up.extend(name for record in reply.content.array_records.values() for name in record)
        return reply

    strategy = make_strategy(personal=("bn.*",), groups_per_stage=1, fraction_evaluate=0.0)
    run(strategy, train, intercept=watch, mods=(spy,))

    first = [names for _, _, names in down[:CLIENTS]]
    assert all(any(name.startswith("bn.") for name in names) for names in first)
    assert not [names for _, _, names in down[CLIENTS:] if any(n.startswith("bn.") for n in names)]
    assert up
    assert not [name for name in up if name.startswith("bn.")]


def test_a_client_trains_on_its_own_ones():
    seen = {}

    def train(message, context, client):
        model = load_model(Net(), message)
        stage = message.content["fedma"].get("stage", 0)
        if stage == 0 and client in seen:
            assert torch.equal(model.bn.weight, seen[client])
        fit(model, client)
        if stage == 0:
            seen[client] = model.bn.weight.detach().clone()
        return reply(message, model, client)

    result, _ = run(make_strategy(personal=("bn.*",)), train)

    assert len({float(weight.detach().sum()) for weight in seen.values()}) == CLIENTS
    weights = result.arrays.to_torch_state_dict()
    assert torch.equal(weights["bn.weight"], torch.ones(6))
    assert float(weights["bn.num_batches_tracked"]) == 0


def test_a_personal_head_has_no_stage():
    heads = {}

    def train(message, context, client):
        model = load_model(Net(), message)
        if client in heads:
            assert torch.equal(model.c.weight, heads[client])
        fit(model, client)
        heads[client] = model.c.weight.detach().clone()
        return reply(message, model, client)

    strategy = make_strategy(personal=("c.*", "bn.*"))
    result, _ = run(strategy, train)

    assert len(strategy.settings.plan) == 1
    assert strategy.settings.solver is None
    assert len(result.train_metrics_clientapp) == 3
    with pytest.raises(ValueError, match=r"head was 'solved'.*c\.weight.*not shared"):
        make_strategy(personal=("c.*",), head="solved")


def test_a_client_that_has_lost_all_begins_with_the_initial_ones():
    def forget(message, context):
        record = message.content.config_records["fedma"]
        if record["kind"] != "hello" and record.get("round", 0) == 2 and not forgotten:
            forgotten.append(context.node_id)
            context.state.clear()

    def train(message, context, client):
        model = load_model(Net(), message)
        starts.append((context.node_id, message.content["fedma"]["round"], model.bn.weight.clone()))
        fit(model, client)
        return reply(message, model, client)

    forgotten, starts = [], []
    strategy = make_strategy(personal=("bn.*",), groups_per_stage=1, fraction_evaluate=0.0)
    run(strategy, train, intercept=forget)

    after = [w for node, number, w in starts if number == 2 and node in forgotten]
    assert torch.equal(after[0], torch.ones(6))
    assert not any(exchange.dropped for exchange in strategy.history)


@pytest.mark.parametrize(
    ("personal", "words"),
    [
        (("norm.*",), r"personal was .*'norm\.\*' matches no tensor"),
        (("*.bn*",), r"tensors with 'bn' in their names are .*write '\*bn\*'"),
        ("bn.*", "personal was 'bn.*'; it must be a tuple"),
        ((3,), "personal was .*; it must be a tuple"),
        (("*",), "every tensor"),
    ],
)
def test_what_names_no_tensor_is_refused(personal, words):
    with pytest.raises(ValueError, match=words):
        make_strategy(personal=personal)


def test_a_reply_without_them_is_an_error_that_says_what_to_write():
    def train(message, context, client):
        model = load_model(Net(), message)
        state = {n: t for n, t in model.state_dict().items() if not n.startswith("c.")}
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": ArrayRecord(state), "m": metrics}), reply_to=message)

    with pytest.raises(
        AggregationError,
        match=r"lacks the tensors \['c.weight', 'c.bias'\].*personal=\('c\.\*',\)",
    ):
        run(make_strategy(), train)


def test_batch_norms_that_are_kept_back_by_hand_are_all_named():
    """FedBN as it is written for FedAvg: a reply without the norms' tensors, ten of them."""

    class Normed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.bn1 = torch.nn.Linear(2, 6), torch.nn.BatchNorm1d(6)
            self.b, self.bn2 = torch.nn.Linear(6, 6), torch.nn.BatchNorm1d(6)
            self.c = torch.nn.Linear(6, 2)

        def forward(self, x):
            return self.c(self.bn2(self.b(self.bn1(self.a(x)).relu())).relu())

    def train(message, context, client):
        model = load_model(Normed(), message)
        state = {n: t for n, t in model.state_dict().items() if "bn" not in n}
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": ArrayRecord(state), "m": metrics}), reply_to=message)

    with pytest.raises(AggregationError, match=r"and 5 others.*personal=\('bn\*',\)"):
        run(make_strategy(Normed), train, net=Normed)
