"""The training loop, on a linear model and a tiny network."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from fedma_flwr.tasks.training import evaluate, train

CPU = torch.device("cpu")
SGD = {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "batch_size": 8, "device": CPU}


def digits(n=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (n,), generator=generator)
    images = torch.randn(n, 1, 6, 6, generator=generator) + labels.view(-1, 1, 1, 1)
    return TensorDataset(images, labels)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(64, 3)
    )


def zero_linear():
    model = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(model.weight)
    return model


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_one_step_by_hand():
    # Logits are 0, so both probabilities are 1/2 and the gradient of row c is x * (1/2 - [c = 1]).
    model = zero_linear()
    data = TensorDataset(torch.tensor([[2.0, -4.0]]), torch.tensor([1]))

    loss = train(model, data, epochs=1, seed=0, **SGD)

    torch.testing.assert_close(model.weight.detach(), torch.tensor([[-0.1, 0.2], [0.1, -0.2]]))
    assert loss == pytest.approx(0.6931472)


def test_same_seed_gives_identical_weights_whatever_the_callers_random_state():
    models = [network(), network()]
    losses = []
    for model, state in zip(models, (1, 2), strict=True):
        torch.manual_seed(state)
        losses.append(train(model, digits(), epochs=3, seed=5, **SGD))

    assert torch.equal(weights(models[0]), weights(models[1]))
    assert losses[0] == losses[1]


def test_other_seed_gives_other_weights():
    models = [network(), network()]
    for model, seed in zip(models, (5, 6), strict=True):
        train(model, digits(), epochs=1, seed=seed, **SGD)

    assert not torch.equal(weights(models[0]), weights(models[1]))


def test_callers_random_state_is_left_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()

    model = network()
    torch.manual_seed(3)
    train(model, digits(), epochs=1, seed=0, **SGD)

    assert torch.equal(torch.get_rng_state(), before)


def test_training_lowers_the_loss():
    model, data = network(), digits(300)
    before, _ = evaluate(model, data, CPU)

    train(model, data, epochs=5, seed=0, **SGD)

    after, accuracy = evaluate(model, data, CPU)
    assert after < before / 2
    assert accuracy > 0.9


def test_frozen_parameters_stay_bit_for_bit():
    model = network()
    model[0].requires_grad_(False)
    frozen = model[0].weight.clone()
    free = model[4].weight.detach().clone()

    train(model, digits(), epochs=1, seed=0, **{**SGD, "weight_decay": 0.1})

    assert torch.equal(model[0].weight, frozen)
    assert not torch.equal(model[4].weight, free)


def test_penalty_is_added_to_every_steps_loss():
    # 100 |w|^2 adds 200 w to the gradient: with lr 0.1 the second step overshoots visibly.
    data = TensorDataset(torch.tensor([[2.0, -4.0]]), torch.tensor([1]))
    model = zero_linear()
    calls = []

    def penalty():
        calls.append(None)
        return 100 * model.weight.square().sum()

    train(model, data, epochs=2, seed=0, penalty=penalty, **SGD)

    w = torch.tensor([[-0.1, 0.2], [0.1, -0.2]])  # after one step, as without the penalty
    x = data.tensors[0]
    p = torch.softmax(x @ w.T, dim=1) - torch.tensor([[0.0, 1.0]])
    torch.testing.assert_close(model.weight.detach(), w - 0.1 * (p.T @ x + 200 * w))
    assert len(calls) == 2


def test_reported_loss_leaves_the_penalty_out():
    data = TensorDataset(torch.tensor([[2.0, -4.0]]), torch.tensor([1]))

    loss = train(zero_linear(), data, epochs=1, seed=0, penalty=lambda: torch.tensor(5.0), **SGD)

    assert loss == pytest.approx(0.6931472)


def test_loss_is_the_mean_over_examples_not_batches():
    # Hardly learning: 9 examples cost log 2 and one log(1 + e^20), which is 20.
    model = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0], [20.0]]))
    inputs = torch.tensor([[0.0]] * 9 + [[1.0]])
    data = TensorDataset(inputs, torch.zeros(10, dtype=torch.int64))

    loss = train(model, data, epochs=1, seed=0, **{**SGD, "lr": 1e-12})

    assert loss == pytest.approx((9 * 0.6931472 + 20) / 10)


def test_evaluate_by_hand():
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
    inputs = torch.tensor([[3.0, 0.0]] * 600 + [[0.0, 3.0]] * 200)

    loss, accuracy = evaluate(model, TensorDataset(inputs, torch.zeros(800).long()), CPU)

    assert accuracy == 0.75
    assert loss == pytest.approx(0.75 * 0.0485874 + 0.25 * 3.0485874, rel=1e-5)
    assert not model.training


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, not 0"),
        ({"epochs": 1, "batch_size": 0}, "batch_size must be at least 1, not 0"),
    ],
)
def test_bad_numbers_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        train(network(), digits(), seed=0, **{**SGD, **change})


def test_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        train(network().requires_grad_(False), digits(), epochs=1, seed=0, **SGD)


def test_empty_data_is_refused():
    with pytest.raises(ValueError, match="no examples to train on"):
        train(network(), digits(0), epochs=1, seed=0, **SGD)
    with pytest.raises(ValueError, match="no examples to evaluate on"):
        evaluate(network(), digits(0), CPU)
