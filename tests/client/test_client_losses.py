"""Targets read from any loss that has a minimum for each output; other losses are told apart."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from fedma_flwr import head_moments
from fedma_flwr.client_moments import SIGMOID_VALUE, collecting
from fedma_flwr.protocol import CROSS_KEY, GRAM_KEY, SQUARES_KEY, ClientError, to_tensors

FEATURES, EXAMPLES = 6, 44


class Net(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.hidden, self.head = nn.Linear(4, FEATURES), nn.Linear(FEATURES, outputs)

    def forward(self, x):
        return self.head(torch.tanh(self.hidden(x)))


def problem(outputs):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(EXAMPLES, 4, generator=generator), 100 + 7 * torch.randn(
        EXAMPLES, outputs, generator=generator
    )


def read(loss, outputs, batch=10, rounds=1):
    """What the hooks read in a training loop whose last batch is smaller."""
    torch.manual_seed(0)
    model, (x, y) = Net(outputs), problem(outputs)
    optimizer = torch.optim.Adam(model.parameters())
    with collecting("head") as hook:
        hook.attach(model)
        for _ in range(rounds):
            for rows in torch.randperm(len(x)).split(batch):
                optimizer.zero_grad()
                loss(model(x[rows]), y[rows]).backward()
                optimizer.step()
        return model, hook.moments()


def expected(model, targets):
    x, _ = problem(targets.shape[1])
    with torch.no_grad():
        phi = torch.tanh(model.hidden(x)).double()
    ones, y = torch.cat([phi, torch.ones(len(x), 1)], 1), targets.double()
    cross = torch.cat([y, torch.ones(len(x), 1)], 1).T @ ones / len(x)
    gram = (phi.T @ phi / len(x))[tuple(torch.triu_indices(FEATURES, FEATURES))]
    return {GRAM_KEY: gram, CROSS_KEY: cross, SQUARES_KEY: y.square().sum(0) / len(x)}


def close(moments, wanted, rtol=1e-5):
    assert moments.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(moments[name].double(), tensor, rtol=rtol, atol=rtol)


SQUARED = {
    "mean": functional.mse_loss,
    "sum": lambda z, y: functional.mse_loss(z, y, reduction="sum"),
    "by hand": lambda z, y: ((z - y) ** 2).mean(),
    "half of the rows' sums": lambda z, y: 0.5 * (z - y).square().sum(1).mean(),
    "scaled for AMP, accumulated": lambda z, y: 65536 * functional.mse_loss(z, y) / 4,
    "a norm": lambda z, y: (z - y).norm() ** 2,
    "outputs in other units": lambda z, y: functional.mse_loss(5 * z + 100, 5 * y + 100),
    "weighed examples": lambda z, y: (y[:, :1].abs() * (z - y) ** 2).mean(),
    "weighed outputs": lambda z, y: (torch.arange(1, z.shape[1] + 1) * (z - y) ** 2).mean(),
    "in double precision": lambda z, y: functional.mse_loss(z.double(), y.double()),
}


@pytest.mark.parametrize("outputs", [1, 2, 3])
@pytest.mark.parametrize("loss", SQUARED.values(), ids=SQUARED)
def test_targets_of_a_squared_error_are_read_exactly(loss, outputs):
    model, moments = read(loss, outputs)
    close(moments, expected(model, problem(outputs)[1]))


def test_one_output_may_lose_its_axis():
    model, moments = read(lambda z, y: functional.mse_loss(z.squeeze(1), y[:, 0]), 1)
    close(moments, expected(model, problem(1)[1]))


def test_several_passes_repeat_the_sums():
    model, moments = read(functional.mse_loss, 2, rounds=3)
    close(moments, expected(model, problem(2)[1]))


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize(
    "loss",
    [
        functional.binary_cross_entropy_with_logits,
        lambda z, y: functional.binary_cross_entropy(z.sigmoid(), y),
        lambda z, y: functional.binary_cross_entropy_with_logits(
            z, y, pos_weight=torch.tensor(3.0)
        ),
    ],
)
def test_labels_behind_sigmoids_are_read(loss, outputs):
    labels = (problem(outputs)[1] > 100).float()
    model, moments = read(lambda z, y: loss(z, (y > 100).float()), outputs)
    close(moments, expected(model, SIGMOID_VALUE * (2 * labels - 1)))


def test_examples_that_do_not_count_are_left_out():
    def masked(z, y):
        return ((y[:, :1] > 100) * (z - y) ** 2).sum() / 17

    x, y = problem(2)
    model, moments = read(masked, 2)
    kept = y[:, 0] > 100
    wanted = expected(model, y)
    with torch.no_grad():
        phi = torch.tanh(model.hidden(x[kept])).double()
    wanted[GRAM_KEY] = (phi.T @ phi / len(x))[tuple(torch.triu_indices(FEATURES, FEATURES))]
    torch.testing.assert_close(moments[GRAM_KEY].double(), wanted[GRAM_KEY])


OTHERS = {
    "absolute": functional.l1_loss,
    "huber": functional.huber_loss,
    "poisson": functional.poisson_nll_loss,
    "squared behind a sigmoid": lambda z, y: functional.mse_loss(z.sigmoid(), y),
    "squared error of a sum": lambda z, y: (z.sum(1) - y[:, 0]).square().mean(),
    "some outputs only": lambda z, y: ((y > 100) * (z - y) ** 2).sum(),
    "batch-wise": lambda z, y: (z - z.mean(0) - y).square().mean(),
}


@pytest.mark.parametrize("loss", OTHERS.values(), ids=OTHERS)
def test_other_losses_are_refused(loss):
    with pytest.raises(ClientError, match=r"neither.*head_moments"):
        read(loss, 3)


def test_classes_are_read_as_ever():
    _, moments = read(lambda z, y: functional.cross_entropy(z, y.argmax(1)), 3)
    assert SQUARES_KEY not in moments
    assert moments[CROSS_KEY].shape == (3, FEATURES + 1)


def test_gradients_are_what_they_are_without_a_look():
    def gradients(loss, path):
        torch.manual_seed(0)
        model, (x, y) = Net(3), problem(3)
        with torch.no_grad():
            model.head.weight.zero_()
            model.head.bias.zero_()
        calls = []
        with collecting(path) as hook:
            if path:
                hook.attach(model)
            out = model(x)
            out.register_hook(lambda g: calls.append(1))
            loss(out, y).backward()
        return [model.head.weight.grad, model.head.bias.grad]

    for loss in (functional.mse_loss, functional.huber_loss):
        for own, plain in zip(gradients(loss, "head"), gradients(loss, ""), strict=True):
            assert torch.equal(own, plain)


def test_a_loss_that_cannot_be_differentiated_twice_is_read_as_before():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            return z.clone()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, gradient):
            return gradient

    _, moments = read(lambda z, y: functional.cross_entropy(Once.apply(z), y.argmax(1)), 3)
    assert moments[CROSS_KEY].shape == (3, FEATURES + 1)
    with pytest.raises(ClientError, match="neither"):
        read(lambda z, y: functional.mse_loss(Once.apply(z), y), 3)


def test_head_moments_takes_values():
    x, y = problem(2)
    model = Net(2)
    found = to_tensors(
        head_moments(model, [(x[:30], y[:30]), (x[30:], y[30:])], head="head", values=True)
    )
    close(found, expected(model, y))
    one = Net(1)
    found = to_tensors(head_moments(one, [(x, y[:, 0])], head="head", values=True))
    close(found, expected(one, y[:, :1]))


@pytest.mark.parametrize(
    ("labels", "options", "words"),
    [
        (torch.zeros(EXAMPLES, 2), {}, "say values=True"),
        (torch.zeros(EXAMPLES, 3), {"values": True}, r"2 finite numbers.*\(44, 3\)"),
        (torch.full((EXAMPLES, 2), torch.nan), {"values": True}, "finite"),
    ],
)
def test_wrong_values_are_refused(labels, options, words):
    with pytest.raises(ClientError, match=words):
        head_moments(Net(2), [(problem(2)[0], labels)], head="head", **options)
