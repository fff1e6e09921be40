"""Heads that map several positions of an example, and models that are used again."""

import pytest
import torch
from flwr.app import ArrayRecord
from torch import nn
from torch.nn import functional

from fedma_flwr import head_moments
from fedma_flwr.client import _freeze, load_model
from fedma_flwr.client_moments import collecting
from fedma_flwr.protocol import CROSS_KEY, GRAM_KEY, ClientError

CLASSES = 3


class Pooled(nn.Module):
    """Logits at every position, averaged over them: as NIN and SqueezeNet do."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.head = nn.Conv2d(4, CLASSES, 1)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x))).mean((2, 3))


def read(model, loss):
    with collecting("head") as hook:
        hook.attach(model)
        loss(model).backward()
        return hook.moments()


def test_logits_that_are_averaged_over_positions_have_averaged_inputs():
    model, x, y = Pooled(), torch.randn(6, 1, 5, 5), torch.tensor([0, 1, 2, 0, 1, 1])

    moments = read(model, lambda m: functional.cross_entropy(m(x), y))

    phi = torch.relu(model.conv(x)).mean((2, 3)).detach().double()
    targets = functional.one_hot(y, CLASSES).double()
    cross = targets.T @ torch.cat([phi, torch.ones(6, 1)], 1) / 6
    torch.testing.assert_close(moments[CROSS_KEY].double(), cross, rtol=1e-5, atol=1e-5)
    gram = (phi.T @ phi / 6)[tuple(torch.triu_indices(4, 4))]
    torch.testing.assert_close(moments[GRAM_KEY].double(), gram, rtol=1e-5, atol=1e-5)


def test_labels_at_each_position_are_not_averaged():
    model, x = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, CLASSES, 1)), torch.randn(2, 1, 4, 4)
    y = torch.tensor([[[0, 0], [0, 0]], [[0, 1], [2, 0]]])  # one of them is the same throughout
    with collecting("1") as hook:
        hook.attach(model)
        functional.cross_entropy(model(x), y).backward()
        counts = hook.moments()[CROSS_KEY][:, -1]
    assert (2 * counts).tolist() == [6.0, 1.0, 1.0]  # of eight positions of two examples


def test_a_batch_whose_scaled_loss_overflows_is_passed_over():
    model, x, y = Pooled(), torch.randn(4, 1, 5, 5), torch.tensor([0, 1, 2, 0])
    with collecting("head") as hook:
        hook.attach(model)
        (functional.cross_entropy(model(x), y) * float("inf")).backward()
        with pytest.raises(ClientError, match="has seen no example"):
            hook.moments()
        functional.cross_entropy(model(x), y).backward()
        assert hook.moments()[CROSS_KEY][:, -1].tolist() == [0.5, 0.25, 0.25]


@pytest.mark.parametrize("options", [{"stride": 2}, {"padding": 1}, {"groups": 2}])
def test_convolutions_that_move_positions_are_no_heads(options):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 1, **options))
    with (
        collecting("1") as hook,
        pytest.raises(ClientError, match=r'without stride, padding and groups.*head="trained"'),
    ):
        hook.attach(model)


@pytest.mark.parametrize(
    "labels", [torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[2.5]]), torch.zeros(1, 3)]
)
def test_targets_that_are_no_classes_are_refused_with_the_way_out(labels):
    model = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, CLASSES))
    with pytest.raises(ClientError, match=r'must be 3 probabilities.*head="trained"'):
        head_moments(model, [(torch.ones(1, 2), labels)], head="1")


def test_no_batches_are_no_moments():
    with pytest.raises(ClientError, match="no example in `batches`"):
        head_moments(nn.Sequential(nn.Linear(2, 4)), [], head="0")


def test_a_model_that_is_used_again_is_trained_again():
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    model[2].bias.requires_grad_(False)  # the user's own
    _freeze(model, frozenset({"0.weight", "1.weight", "1.running_mean"}), trains=True)
    assert not model[0].weight.requires_grad
    with collecting("2") as hook:
        hook.attach(model)
        assert not model[0].bias.requires_grad
    assert model[0].bias.requires_grad

    load_model(model, ArrayRecord(model.state_dict()))

    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained == ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight"]
    model.train()(torch.ones(3, 2))
    assert model[1].training
