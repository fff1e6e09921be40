"""FedMA with a solved head, end to end on the in-process grid."""

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from torch import nn
from torch.nn import functional

from fedma_flwr import FedAvg, FedMA, Stage, head_moments, load_model
from fedma_flwr.averaging import (
    HeadMoments,
)
from fedma_flwr.averaging.head_moments import upper_triangle
from fedma_flwr.averaging.ridge_regression import best_scale, choose_regularisation
from fedma_flwr.protocol import CROSS_KEY, GRAM_KEY, Instruction
from fedma_flwr.server.global_model import GlobalModel
from fedma_flwr.structure import PermutationSpec, StagePlan
from fedma_flwr.testing import InProcessGrid
from tests.server.solved_head import TWO_EXCHANGES, run, stages
from tests.toy import CLIENTS, Net, data, fit, initial_arrays, make_app, reply


def regression(model):
    """All clients' head inputs, with a 1, their targets, and what is added to the squares."""
    phi, y = [], []
    for x, labels in map(data, range(CLIENTS)):
        phi.append(torch.relu(model.b(torch.relu(model.a(x)))).detach().double())
        y.append(labels)
    phi, targets = torch.cat(phi), functional.one_hot(torch.cat(y), 2).double()
    wide = torch.cat([phi, torch.ones(len(phi), 1)], 1)
    chosen = choose_regularisation(
        HeadMoments(upper_triangle(phi.T @ phi), targets.T @ wide), bias=True
    )
    regular = torch.diag(torch.tensor([chosen * float((phi**2).sum()) / 8] * 8 + [0.0]))
    return wide, targets, regular


def head_of(model):
    return torch.cat([model.c.weight, model.c.bias[:, None]], 1).detach().double()


def test_a_round_has_two_exchanges_and_its_head_is_that_of_all_examples():
    sent = {}

    def train(message, context, client):
        if Stage.from_message(message).solves_head:  # the same for all clients
            sent.update(message.content["arrays"].to_torch_state_dict())
        model = load_model(Net(), message)
        fit(model, client, 10)
        return reply(message, model, client)

    strategy = run(make_app(train=train), rounds=1)

    assert [record.name for record in stages(strategy)] == ["local", "head"]
    model = load_model(Net(), strategy.result.arrays)
    wide, targets, regular = regression(model)
    reference = torch.cat([sent["c.weight"], sent["c.bias"][:, None]], 1).double()
    missing = targets - (wide @ reference.T).softmax(1)
    step = torch.linalg.solve(wide.T @ wide + regular, wide.T @ missing).T
    assert float(reference.norm()) > 0.01
    torch.testing.assert_close(head_of(model), reference + 10 * step, rtol=1e-4, atol=1e-4)


def test_with_a_robust_average_the_head_is_regression_alone():
    """What a client says that a head expects cannot be compared with what others say."""
    asked, app = [], make_app()

    def intercept(message, context):
        instruction = Instruction.from_record(message.content["fedma"])
        answer = app(message, context)
        if instruction.head_module:
            asked.append((instruction.head_expected, set(answer.content["arrays"])))
        return answer

    run(rounds=1, averaging="median", intercept=intercept)

    assert asked == [(False, {GRAM_KEY, CROSS_KEY})] * CLIENTS


def test_the_share_of_the_trained_head_follows_from_what_it_expects():
    """A head that is right but timid is followed further; one that is wrong is not followed."""
    wide, targets = torch.eye(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)

    def factor(reference):
        expected = (wide @ reference.T).softmax(1).T @ wide
        counts = torch.ones(3, 1, dtype=torch.float64)
        moments = HeadMoments(
            upper_triangle(wide.T @ wide),
            torch.cat([targets.T @ wide, counts], 1),
            torch.cat([expected, expected.sum(1, keepdim=True)], 1),
        )
        return best_scale(moments, reference)

    assert factor(torch.eye(3, dtype=torch.float64)) > 2
    assert factor(10 * torch.eye(3, dtype=torch.float64)) == pytest.approx(1, abs=1e-3)
    assert factor(-torch.eye(3, dtype=torch.float64)) < 0
    assert GlobalModel({}, reference_share=0.5).next_share(1e9) == 0.6
    assert GlobalModel({}, reference_share=0.5).next_share(-1.0) == 0.1
    assert GlobalModel({}, reference_share=0.5).next_share(0.5) == 0.25


def test_local_training_goes_on_from_the_average_of_trained_heads():
    """As FedAvg's does: all of the model but the head is that of FedAvg, round by round."""
    fedma, plain = run(rounds=3, head_start="averaged"), FedAvg(fraction_evaluate=0.0)
    result = plain.start(InProcessGrid(make_app(steps=10), CLIENTS), initial_arrays(), num_rounds=3)

    ours = fedma.result.arrays.to_torch_state_dict()
    for name, tensor in result.arrays.to_torch_state_dict().items():
        if name.startswith("c."):
            assert not torch.allclose(ours[name], tensor, atol=1e-3)
        else:
            torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-5)


def test_local_training_goes_on_from_the_solved_head_at_four_times_a_new_ones_norm():
    begun_with = {}

    def train(message, context, client):
        model, stage = load_model(Net(), message), Stage.from_message(message)
        if stage.name == "local":
            begun_with.setdefault(stage.round, model.c.weight.detach().clone())
        fit(model, client, 10)
        return reply(message, model, client)

    strategy, first = run(make_app(train), rounds=2), run(make_app(train), rounds=1)

    wide, targets, regular = regression(load_model(Net(), first.result.arrays))
    solved = torch.linalg.solve(wide.T @ wide + regular, wide.T @ targets).T[:, :-1].float()
    size = 4 * (2 / 3) ** 0.5
    torch.testing.assert_close(begun_with[2], size * solved / solved.norm(), rtol=1e-4, atol=1e-4)
    assert "c.weight" in strategy.settings.plan[0].uploads


def test_bytes_of_the_head_stage_are_those_of_the_moments():
    local, head = stages(run(rounds=1))

    numbers = 8 * 9 // 2 + 2 * 2 * 9
    assert 4 * numbers * CLIENTS < head.bytes_up < (4 * numbers + 720) * CLIENTS
    assert head.bytes_up < local.bytes_up


def test_clients_know_that_nothing_is_trained():
    seen = []

    def train(message, context, client):
        stage = Stage.from_message(message)
        config = message.content.config_records["config"]
        seen.append((stage.name, stage.solves_head, stage.epochs, config["local-epochs"]))
        model = load_model(Net(), message)
        fit(model, client)
        return reply(message, model, client)

    strategy = FedMA(**TWO_EXCHANGES)
    grid = InProcessGrid(make_app(train), 2)
    strategy.start(
        grid, initial_arrays(), num_rounds=1, train_config=ConfigRecord({"local-epochs": 7})
    )

    assert set(seen) == {("local", False, 7, 7), ("head", True, 1, 1)}


def test_head_moments_in_a_reply_stand_for_the_model():
    def train(message, context, client):
        model = load_model(Net(), message)
        if not Stage.from_message(message).solves_head:
            fit(model, client, 10)
            return reply(message, model, client)
        records = {
            "moments": head_moments(model, [data(client)]),
            "numbers": MetricRecord({"num-examples": 60, "epochs": 0}),
        }
        return Message(RecordDict(records), reply_to=message)

    given, hooked = run(make_app(train)), run()

    for name, tensor in given.result.arrays.to_torch_state_dict().items():
        torch.testing.assert_close(tensor, hooked.result.arrays.to_torch_state_dict()[name])


def test_clients_outside_the_cohort_are_asked_for_moments():
    strategy = run(clients=6, fraction_train=0.5, rounds=3)

    assert [record.cohort for record in stages(strategy)] == [3, 6] * 3
    assert not any(record.dropped for record in strategy.history)
    few = run(clients=6, fraction_train=0.5, rounds=1, head_fraction=0.7)
    assert [record.cohort for record in stages(few)] == [3, 4]
    none = run(clients=6, fraction_train=0.5, rounds=1, head_fraction=0.0)
    assert [record.cohort for record in stages(none)] == [3, 3]


def test_a_client_that_lost_its_state_is_sent_everything_for_its_moments():
    def forget(message, context):
        if context.node_config["partition-id"] == 1 and "fedma.state" in context.state:
            del context.state["fedma.state"]

    strategy = run(intercept=forget, rounds=1)

    assert stages(strategy)[1].resent == ("1",)
    assert strategy.history.given_up == {}
    same = run(rounds=1).result.arrays.to_torch_state_dict()
    for name, tensor in strategy.result.arrays.to_torch_state_dict().items():
        assert torch.equal(tensor, same[name])


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path):
    whole = run(clients=6, fraction_train=0.5, rounds=4)
    run(clients=6, fraction_train=0.5, rounds=2, checkpoint_dir=tmp_path)
    resumed = run(clients=6, fraction_train=0.5, rounds=4, checkpoint_dir=tmp_path, resume=True)

    ours, theirs = (s.result.arrays.to_torch_state_dict() for s in (whole, resumed))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


class WithNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(2, 12)
        self.norm = nn.BatchNorm1d(12)
        self.c = nn.Linear(12, 2)

    def forward(self, x):
        return self.c(torch.relu(self.norm(self.a(x))))


def test_batch_norm_costs_one_exchange_more():
    def train(message, context, client):
        model = load_model(WithNorm(), message).train()
        fit(model, client, 10)
        return reply(message, model, client)

    strategy = FedMA(
        model=WithNorm(),
        example_inputs=(torch.randn(4, 2),),
        head="solved",
        groups_per_stage="all",
        fraction_evaluate=0.0,
    )
    initial = ArrayRecord(WithNorm().state_dict())
    strategy.start(InProcessGrid(make_app(train), CLIENTS), initial, num_rounds=2)

    assert [r.name for r in stages(strategy)] == ["local", "retrain", "head"] * 2
    assert not any(record.dropped for record in strategy.history)


def test_what_would_settle_with_the_head_gets_a_stage_before_it():
    # b makes units of group a, once more, from those of c: a residual stream.
    spec = PermutationSpec(
        {"a": 4, "c": 3},
        {"in.weight": "a, 2", "c.weight": "c, a", "b.weight": "a, c", "out.weight": "2, a"},
    )
    trained, solved = StagePlan.build(spec), StagePlan.build(spec, solved_head=True)

    assert [stage.settles for stage in trained.stages][-1] == ("b.weight", "out.weight")
    assert [stage.settles for stage in solved.stages][-2:] == [("b.weight",), ("out.weight",)]
    assert solved.stages[-1].uploads == ()
