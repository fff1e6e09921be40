"""What local training goes on from beside a solved head, and when that changes by itself."""

import pytest
import torch

from fedma_flwr import FedMA, Stage, load_model, protocol
from fedma_flwr.averaging.head_moments import HeadMoments, upper_triangle
from fedma_flwr.averaging.ridge_regression import solve_head, unexplained_share
from fedma_flwr.server.global_model import FALL, GlobalModel
from fedma_flwr.testing import InProcessGrid
from tests.toy import CLIENTS, SPEC, Net, fit, initial_arrays, make_app, reply


def moments_of(inputs, labels, classes=2):
    y = torch.nn.functional.one_hot(labels, classes).double()
    cross = torch.cat([y.T @ inputs, y.sum(0)[:, None]], 1)
    return HeadMoments(upper_triangle(inputs.T @ inputs), cross)


def share(inputs, labels, *, bias=True):
    moments = moments_of(inputs.double(), labels)
    head = solve_head(moments, bias=bias, regularisation=1e-9)
    return unexplained_share(moments, *head)


def test_inputs_that_are_the_labels_leave_nothing_unexplained():
    labels = torch.tensor([0, 1, 1, 0, 1])
    assert share(torch.stack([labels, 1 - labels], 1), labels) == pytest.approx(0, abs=1e-6)


def test_inputs_that_say_nothing_leave_everything():
    assert share(torch.ones(4, 1), torch.tensor([0, 0, 1, 1])) == pytest.approx(1, abs=1e-6)
    assert share(torch.ones(3, 1), torch.tensor([1, 1, 1])) == 1.0  # one class: nothing to tell


def test_it_is_the_residual_of_least_squares_over_the_variance():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    labels = (inputs[:, 0] + torch.randn(50, generator=generator) > 0).long()
    y = torch.nn.functional.one_hot(labels, 2).double()
    ones = torch.cat([inputs, torch.ones(50, 1, dtype=torch.float64)], 1)
    residual = y - ones @ torch.linalg.lstsq(ones, y).solution
    expected = residual.square().sum() / (y - y.mean(0)).square().sum()
    assert share(inputs, labels) == pytest.approx(float(expected), rel=1e-6)


def test_features_have_fallen_once_they_are_much_worse_than_the_best():
    model = GlobalModel({}, unexplained=0.4)
    assert not model.has_fallen(0.4 + FALL - 0.01)
    assert model.has_fallen(0.4 + FALL + 0.01)
    assert not GlobalModel({}).has_fallen(1.0)  # where no head is solved
    assert GlobalModel({}, unexplained=0.4, fell=True).has_fallen(0.3)


def trained(head_start, *, breaks=(2,), rounds=2, **options):
    """A strategy after rounds of which one destroys the features; the heads that clients got."""
    heads, starts = [], []

    def train(message, context, client):
        model, stage = load_model(Net(), message), Stage.from_message(message)
        if stage.index == 0:
            starts.append(model.c.weight.detach().clone().flatten())
        fit(model, client, steps=30)
        if stage.solves_head:  # what is sent here is a share of the averaged trained head
            sent = message.content["arrays"]["c.weight"].numpy()
            heads.append(torch.from_numpy(sent).flatten())
        elif stage.round in breaks:
            with torch.no_grad():
                model.a.weight.zero_()
        return reply(message, model, client)

    strategy = FedMA(spec=SPEC, head_start=head_start, fraction_evaluate=0.0, **options)
    grid = InProcessGrid(make_app(train), CLIENTS)
    strategy.start(grid, initial_arrays(), num_rounds=rounds)
    return strategy, heads[::CLIENTS], starts[::CLIENTS]


def likeness(one, other):
    return float(torch.cosine_similarity(one, other, dim=0))


def test_a_round_whose_features_fall_is_undone():
    strategy, heads, _ = trained("auto")
    once, _, _ = trained("auto", rounds=1)
    for name, tensor in once._model.tensors.items():
        assert torch.equal(strategy._model.tensors[name], tensor)
    assert strategy._model.fell
    assert "much worse" in strategy.history.given_up[2]
    start = strategy._model.local_head["c.weight"].flatten()
    assert likeness(start, heads[0]) == pytest.approx(1, abs=1e-6)


def test_after_it_local_training_begins_with_the_average_of_the_trained_heads():
    strategy, heads, starts = trained("auto", rounds=4)
    assert likeness(starts[1], heads[0]) < 0.999  # a step from it
    assert likeness(starts[2], heads[0]) == pytest.approx(1, abs=1e-6)
    assert likeness(starts[3], heads[2]) == pytest.approx(1, abs=1e-6)  # for good
    assert list(strategy.history.given_up) == [2]
    assert strategy._model.fell


def test_where_tensors_are_personal_the_round_stays(caplog):
    strategy, heads, _ = trained("auto", personal=("a.bias",))
    assert strategy._model.fell
    assert not strategy.history.given_up
    assert "much worse" in caplog.text
    start = strategy._model.local_head["c.weight"].flatten()
    assert likeness(start, heads[-1]) == pytest.approx(1, abs=1e-6)


def test_who_asks_for_the_solved_head_keeps_it():
    strategy, heads, _ = trained("solved")
    start = strategy._model.local_head["c.weight"].flatten()
    assert not strategy.history.given_up
    assert likeness(start, heads[-1]) < 0.999


def test_without_a_fall_it_goes_on_from_the_solved_head():
    strategy, heads, _ = trained("auto", breaks=())
    assert not strategy._model.fell
    assert not strategy.history.given_up
    assert 0 < strategy._model.unexplained < 1
    start = strategy._model.local_head["c.weight"].flatten()
    assert likeness(start, heads[-1]) < 0.999


def test_a_run_that_is_resumed_after_the_round_before_undoes_it_too(tmp_path):
    whole, _, _ = trained("auto", rounds=3)
    trained("auto", rounds=1, checkpoint_dir=tmp_path)
    resumed, _, _ = trained("auto", rounds=3, checkpoint_dir=tmp_path, resume=True)
    assert list(resumed.history.given_up) == [2]
    for name, tensor in whole._model.tensors.items():
        assert torch.equal(resumed._model.tensors[name], tensor)


def same(one, other):
    return all(torch.equal(one[name], tensor) for name, tensor in other.items())


def test_while_features_are_worse_the_best_model_is_handed_out(caplog):
    best = trained("auto", rounds=1)[0]._model.tensors
    strategy, _, _ = trained("auto", breaks=(2, 3), rounds=3)
    assert list(strategy.history.given_up) == [2]
    assert same(strategy._model.handed_out, best)
    assert not same(strategy._model.tensors, best)
    assert same(protocol.to_tensors(strategy._given), best)
    assert "stays the earlier one" in caplog.text


def test_once_they_are_as_good_again_the_new_model_is_handed_out():
    strategy, _, _ = trained("auto", breaks=(2, 3), rounds=5)
    assert strategy._model.best == {}
    assert same(protocol.to_tensors(strategy._given), strategy._model.tensors)


def test_a_run_that_is_resumed_hands_out_the_best_model_too(tmp_path):
    whole, _, _ = trained("auto", breaks=(2, 3), rounds=4)
    trained("auto", breaks=(2, 3), rounds=3, checkpoint_dir=tmp_path)
    resumed, _, _ = trained("auto", breaks=(2, 3), rounds=4, checkpoint_dir=tmp_path, resume=True)
    assert same(resumed._model.handed_out, whole._model.handed_out)
    assert same(resumed._model.tensors, whole._model.tensors)


def test_a_model_of_other_widths_is_not_kept():
    model = GlobalModel({"w": torch.ones(2)})
    assert same(model.better_than({"w": torch.zeros(2)}), {"w": torch.ones(2)})
    assert model.better_than({"w": torch.zeros(3)}) == {}
