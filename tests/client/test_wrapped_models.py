"""Models that are wrapped, lazy, or given as arrays: names and shapes are understood."""

from functools import partial

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord
from torch import nn

from fedma_flwr import FedMA, load_model
from fedma_flwr.structure import SpecError
from fedma_flwr.structure.wrapped_models import submodule_at, under_names
from fedma_flwr.testing import InProcessGrid
from tests.toy import LayerwiseFedMA, Net, fit, make_app, reply

EAGER = partial(torch.compile, backend="eager")
INPUTS = (torch.zeros(4, 2),)


class Opacus(nn.Module):
    """As Opacus' GradSampleModule names what it wraps."""

    def __init__(self, model):
        super().__init__()
        self._module = model

    def forward(self, x):
        return self._module(x)


def inside(model):
    """A model of which only a part is wrapped."""
    model.b = EAGER(model.b)
    return model


def head_too(model):
    model.c = EAGER(model.c)
    return model


WRAPS = {
    "data parallel": nn.DataParallel,
    "compiled": EAGER,
    "whole graph": partial(torch.compile, backend="eager", fullgraph=True),
    "opacus": Opacus,
    "nested": lambda model: nn.DataParallel(EAGER(Opacus(model))),
    "inside": inside,
    "head": head_too,
}


def run(strategy, train, rounds=2, initial=None):
    grid = InProcessGrid(make_app(train), 3)
    initial = initial or ArrayRecord(Net().state_dict())
    return strategy.start(grid, initial, num_rounds=rounds).arrays.to_torch_state_dict()


def training(before=lambda model: model, after=lambda model: model):
    def train(message, context, client):
        model = after(load_model(before(Net()), message))
        model.train()
        fit(model, client)
        return reply(message, model, client)

    return train


@pytest.mark.parametrize("plan", [FedMA, LayerwiseFedMA])
@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_a_wrapped_model_is_trained_as_a_plain_one(plan, wrap):
    torch.manual_seed(0)
    initial = ArrayRecord(Net().state_dict())
    plain, after, before = (
        run(plan(model=Net(), example_inputs=INPUTS), training(**wraps), initial=initial)
        for wraps in ({}, {"after": wrap}, {"before": wrap})
    )

    for state in (after, before):
        assert list(state) == list(plain)
        assert all(torch.allclose(state[name], plain[name], atol=1e-6) for name in plain)


def test_a_server_may_know_the_wrapped_model_and_clients_the_plain_one():
    wrapped = nn.DataParallel(Net())
    strategy = FedMA(model=wrapped, example_inputs=INPUTS)

    state = run(strategy, training(), initial=ArrayRecord(wrapped.state_dict()))

    assert list(state) == list(wrapped.state_dict())
    load_model(Net(), state)


def test_initial_arrays_may_be_a_wrapped_models():
    strategy = FedMA(model=Net(), example_inputs=INPUTS)

    state = run(strategy, training(), initial=ArrayRecord(nn.DataParallel(Net()).state_dict()))

    assert list(state) == list(Net().state_dict())


def test_names_without_wrappers_and_with_others():
    values = {"_orig_mod.module.a.weight": 1, "b._module.bias": 2, "other": 3}
    assert under_names(values, ["a.weight", "b.bias"]) == {"a.weight": 1, "b.bias": 2, "other": 3}
    assert under_names({"a.w": 1}, ["module.a.w"]) == {"module.a.w": 1}
    # A module of the user's own may be called "module".
    both = {"module.a.w": 1, "a.w": 2}
    assert under_names(both, both) == both
    assert under_names({"_module.module.a.w": 1, "_module.a.w": 2}, both).keys() != both.keys()


def test_a_path_leads_through_wrappers():
    model = EAGER(inside(Net()))
    assert submodule_at(model, "b") is submodule_at(model, "module.b")
    assert isinstance(submodule_at(model, "b"), nn.Linear)
    with pytest.raises(AttributeError, match="no module 'd'"):
        submodule_at(model, "d")


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)
        )

    def forward(self, x):
        return self.layers(x)


def test_lazy_layers_take_the_shapes_of_the_arrays():
    x = torch.randn(2, 1, 6, 6)
    built = Lazy()
    built(x)
    wide = nn.Sequential(
        nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3)
    )
    state = {f"layers.{name}": tensor for name, tensor in wide.state_dict().items()}

    model = load_model(Lazy(), state)

    assert model.layers[0].weight.shape == (5, 1, 3, 3)
    assert torch.equal(model.eval()(x), wide.eval()(x))
    assert type(model.layers[4]) is nn.Linear
    assert (model.layers[4].in_features, model.layers[0].out_channels) == (80, 5)


def test_a_spec_is_derived_from_a_lazy_model():
    inputs = (torch.randn(2, 1, 6, 6),)
    model = Lazy()
    spec = FedMA(model=model, example_inputs=inputs).settings.spec

    assert spec.shapes()["layers.4.weight"] == (3, 64)
    assert nn.parameter.is_lazy(model.layers[0].weight)  # it is not changed


def test_arrays_of_numpy_are_as_good_as_tensors(tmp_path):
    state = {name: tensor.numpy() for name, tensor in Net().state_dict().items()}
    np.savez(tmp_path / "model.npz", **state)
    with np.load(tmp_path / "model.npz") as arrays:
        loaded = load_model(Net(), arrays).state_dict()
    assert all(np.array_equal(loaded[name].numpy(), state[name]) for name in state)

    listed = load_model(Net(), list(state.values())).state_dict()
    assert all(torch.equal(listed[name], loaded[name]) for name in state)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("model.pt", "given a str.*torch.load"),
        ([np.zeros(2)], "given 1 arrays; the model's state dict has 6"),
        ({"a.weight": "zeros"}, "tensor, or an array of numbers, for 'a.weight'; it was a str"),
        ({"a.weight": np.array(["x"])}, "'a.weight'; it was a ndarray"),
        (Net(), "given a Net"),
    ],
)
def test_what_holds_no_values_is_refused(source, said):
    with pytest.raises(SpecError, match=said):
        load_model(Net(), source)


class Versioned(Net):
    """As torchvision's MNASNet, which reads its version when it is loaded."""

    _version = 2

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *rest):
        if local_metadata.get("version") not in (1, 2):
            raise ValueError("version should be set to 1 or 2 instead of None")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


def test_a_module_is_given_its_own_version():
    record = ArrayRecord(Versioned().state_dict())
    load_model(Versioned(), record)
    load_model(nn.DataParallel(Versioned()), record)
