"""`resize`: every kind of module takes the widths of a state dict and runs at them."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from fedma_flwr.structure import SpecError, derive_spec, resize
from fedma_flwr.structure.restoring import restored
from tests.structure.networks import LSTM, tokens

# small, large, input for the large one
KINDS = {
    "linear": (nn.Linear(3, 4), nn.Linear(5, 6), (2, 5)),
    "conv1d": (nn.Conv1d(3, 4, 3), nn.Conv1d(5, 6, 3), (2, 5, 8)),
    "conv2d": (nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(5, 6, 3, bias=False), (2, 5, 8, 8)),
    "conv3d": (nn.Conv3d(1, 2, 2), nn.Conv3d(3, 4, 2), (2, 3, 4, 4, 4)),
    "grouped": (nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(8, 6, 1, groups=2), (2, 8, 4, 4)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(5, 10, 3, groups=5), (2, 5, 8, 8)),
    "depthwise_of_two": (nn.Conv2d(2, 2, 3, groups=2), nn.Conv2d(3, 3, 3, groups=3), (2, 3, 8, 8)),
    "transposed": (nn.ConvTranspose2d(3, 4, 2), nn.ConvTranspose2d(5, 6, 2), (2, 5, 4, 4)),
    "transposed_depthwise": (
        nn.ConvTranspose1d(4, 8, 2, groups=4),
        nn.ConvTranspose1d(5, 10, 2, groups=5),
        (2, 5, 4),
    ),
    "batch_norm": (nn.BatchNorm2d(3), nn.BatchNorm2d(5), (2, 5, 4, 4)),
    "batch_norm_plain": (
        nn.BatchNorm1d(3, affine=False),
        nn.BatchNorm1d(5, affine=False),
        (2, 5),
    ),
    "instance_norm": (
        nn.InstanceNorm2d(3, affine=True, track_running_stats=True),
        nn.InstanceNorm2d(5, affine=True, track_running_stats=True),
        (2, 5, 4, 4),
    ),
    "group_norm": (nn.GroupNorm(2, 4), nn.GroupNorm(2, 6), (2, 6, 4, 4)),
    "layer_norm": (nn.LayerNorm((3, 4)), nn.LayerNorm((5, 4)), (2, 5, 4)),
    "rms_norm": (nn.RMSNorm(3), nn.RMSNorm(5), (2, 5)),
    "prelu": (nn.PReLU(3), nn.PReLU(5), (2, 5)),
    "bilinear": (nn.Bilinear(2, 3, 4), nn.Bilinear(5, 5, 6), ((2, 5), (2, 5))),
    "lstm": (nn.LSTM(3, 4, 2), nn.LSTM(5, 6, 2), (7, 2, 5)),
    "lstm_both_ways": (
        nn.LSTM(3, 4, bidirectional=True),
        nn.LSTM(5, 6, bidirectional=True),
        (7, 2, 5),
    ),
    "lstm_projected": (nn.LSTM(3, 4, proj_size=2), nn.LSTM(5, 6, proj_size=3), (7, 2, 5)),
    "gru": (nn.GRU(3, 4), nn.GRU(5, 6), (7, 2, 5)),
    "rnn": (nn.RNN(3, 4), nn.RNN(5, 6), (7, 2, 5)),
    "gru_deep_both_ways": (
        nn.GRU(3, 4, 2, bidirectional=True),
        nn.GRU(5, 6, 2, bidirectional=True),
        (7, 2, 5),
    ),
    "rnn_cell": (nn.RNNCell(3, 4), nn.RNNCell(5, 6), (2, 5)),
    "lstm_cell": (nn.LSTMCell(3, 4), nn.LSTMCell(5, 6), (2, 5)),
    "gru_cell": (nn.GRUCell(3, 4), nn.GRUCell(5, 6), (2, 5)),
    "attention": (
        nn.MultiheadAttention(4, 2),
        nn.MultiheadAttention(8, 2),
        ((3, 2, 8), (3, 2, 8), (3, 2, 8)),
    ),
    "attention_separate": (
        nn.MultiheadAttention(4, 2, kdim=3, vdim=5),
        nn.MultiheadAttention(8, 2, kdim=4, vdim=6),
        ((3, 2, 8), (3, 2, 4), (3, 2, 6)),
    ),
}


def settings(module):
    """The numbers, texts and tuples among a module's attributes; 4.0 is not 4."""
    return {n: repr(v) for n, v in vars(module).items() if isinstance(v, int | float | str | tuple)}


def inputs(shapes):
    shapes = shapes if isinstance(shapes[0], tuple) else (shapes,)
    return tuple(torch.randn(shape) for shape in shapes)


def tensors(output):
    return [leaf for leaf in torch.utils._pytree.tree_leaves(output) if leaf is not None]


@pytest.mark.parametrize("kind", KINDS)
def test_a_resized_module_computes_what_one_built_wide_does(kind):
    small, large, shapes = KINDS[kind]
    resized = resize(copy.deepcopy(small), large.state_dict())
    resized.load_state_dict(large.state_dict())
    assert repr(resized) == repr(large)
    assert settings(resized) == settings(large)
    x = inputs(shapes)
    for ours, theirs in zip(tensors(resized.eval()(*x)), tensors(large.eval()(*x)), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_widths_change_nothing(kind):
    small, _, _ = KINDS[kind]
    twin = copy.deepcopy(small)
    before = dict(twin.named_parameters())
    resize(twin, small.state_dict())
    assert all(before[name] is parameter for name, parameter in twin.named_parameters())


class Tied(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.embedding = nn.Embedding(7, width)
        self.decoder = nn.Linear(width, 7)
        self.decoder.weight = self.embedding.weight

    def forward(self, x):
        return self.decoder(self.embedding(x))


def test_tied_parameters_stay_tied():
    resized = resize(Tied(3), Tied(5).state_dict())
    assert resized.decoder.weight is resized.embedding.weight
    assert resized.decoder.in_features == resized.embedding.embedding_dim == 5
    assert resized(torch.tensor([[1, 2]])).shape == (1, 2, 7)


def test_dtype_and_requires_grad_follow():
    small = nn.Linear(2, 3).double().requires_grad_(False)
    resized = resize(small, nn.Linear(2, 4).state_dict())
    assert resized.weight.dtype == torch.float64
    assert not resized.weight.requires_grad


def test_buffers_follow():
    resized = resize(nn.BatchNorm1d(3), nn.BatchNorm1d(4).state_dict())
    assert resized.running_var.shape == (4,)
    assert resized.num_batches_tracked.dtype == torch.int64


def test_a_module_takes_nothing_from_those_inside_it():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    before = set(vars(model))
    resize(model, nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4)).state_dict())
    assert set(vars(model)) == before


def test_names_and_axes_that_differ_are_refused():
    with pytest.raises(SpecError, match="bias"):
        resize(nn.Linear(2, 3), {"weight": torch.zeros(3, 2)})
    with pytest.raises(SpecError, match="scale"):
        resize(nn.Linear(2, 3), {**nn.Linear(2, 3).state_dict(), "scale": torch.zeros(1)})
    with pytest.raises(SpecError, match="'weight'"):
        resize(nn.Linear(2, 3), {"weight": torch.zeros(3), "bias": torch.zeros(3)})


def test_a_normalised_weight_is_resized():
    small, large = weight_norm(nn.Linear(3, 4)), weight_norm(nn.Linear(5, 6))
    resize(small, large.state_dict()).load_state_dict(large.state_dict())
    x = torch.randn(2, 5)
    torch.testing.assert_close(small(x), large(x))


def test_a_recurrent_module_has_one_width_and_the_spec_says_so():
    module = nn.LSTM(3, 4, 2)
    first, second = nn.LSTM(3, 5).state_dict(), nn.LSTM(5, 4).state_dict()
    wide = first | {name.replace("l0", "l1"): tensor for name, tensor in second.items()}
    with pytest.raises(SpecError, match=r"LSTM has one hidden_size for all .* not 4 and 5"):
        resize(module, wide)
    spec = derive_spec(LSTM(2), (tokens(80, 2, 5),))
    assert not spec.groups["lstm"].growable
    assert "LSTM has one hidden_size for all its layers and directions" in str(spec)


def test_whatever_resize_does_can_be_undone():
    model = nn.Sequential(nn.Linear(3, 4), nn.LSTM(4, 4), nn.BatchNorm1d(4))
    wide = nn.Sequential(nn.Linear(3, 5), nn.LSTM(5, 6), nn.BatchNorm1d(7))
    before, text = dict(model.named_parameters()), repr(model)
    flat, mean = model[1]._flat_weights[0], model[2].running_mean
    with restored(model):
        resize(model, wide.state_dict())
        assert repr(model) == repr(wide)
    assert repr(model) == text
    assert all(before[name] is parameter for name, parameter in model.named_parameters())
    assert model[1]._flat_weights[0] is flat
    assert model[2].running_mean is mean
    assert model[1](torch.zeros(2, 4))[0].shape == (2, 4)
