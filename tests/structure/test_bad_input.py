"""Bad input and models that no spec can be derived for: clear errors, or the right answer."""

import pytest
import torch
from torch import nn

from fedma_flwr.structure import (
    PermutationSpec,
    SpecError,
    UnsupportedModelError,
    derive_spec,
    prove_spec,
)
from tests.structure.networks import Net, mlp

VECTOR = torch.zeros(4, 6)


def chaotic(x):
    for _ in range(3):
        x = (1e6 * x) % 1
    return x


def another_way_for_more(net, x):
    return x.relu() if len(x) == 4 else x.cumsum(1)


def words():
    return Net(lambda n, x: n.b(n.a(x)), a=nn.Embedding(7, 8), b=nn.Linear(8, 3))


class Orthogonal(nn.Module):
    def forward(self, x):
        return torch.linalg.qr(x)[0]


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (mlp(lambda n, x: x.relu()), (torch.zeros(4, 5),), r"does not work.*\(4, 5\).*'a'"),
        (mlp(lambda n, x: x.relu()), (VECTOR, VECTOR), "does not work.*positional"),
        (mlp(lambda n, x: x.relu()), (), r"does not work.*\(\).*positional"),
        (mlp(lambda n, x: x.relu()), VECTOR[0, 0].item(), "tensor, a tuple"),
        (mlp(lambda n, x: x.relu()), None, "tuple"),
        (mlp(lambda n, x: x.relu()), (torch.zeros(0, 6),), r"entries.*\(0, 6\)"),
        (words(), (torch.zeros(2, 5),), "does not work.*float32.*Embedding"),
        (words(), (torch.full((2, 5), 9),), "does not work.*from 9 to 9.*index out of range"),
        (mlp(lambda n, x: chaotic(x)), (VECTOR,), "unstable"),
        (mlp(another_way_for_more), (VECTOR,), "could not be proven.*'a'"),
        (Net(lambda n, x: x * n.scale, scale=torch.rand(6)), (VECTOR,), "no parameters"),
        (nn.ReLU(), (VECTOR,), "no parameters"),
        (None, (VECTOR,), "nn.Module"),
    ],
)
def test_bad_input_is_a_clear_error(model, inputs, message):
    with pytest.raises(UnsupportedModelError, match=message):
        derive_spec(model, inputs)


def test_a_tensor_is_the_only_argument():
    model = mlp(lambda n, x: x.relu())
    assert derive_spec(model, VECTOR).to_json() == derive_spec(model, (VECTOR,)).to_json()
    with pytest.raises(UnsupportedModelError, match=r"float32 of shape \(4, 5\)"):
        derive_spec(model, torch.zeros(4, 5))


def test_views_of_the_same_memory_are_refused():
    model = mlp(lambda n, x: n.c(x), c=nn.Linear(8, 8))
    model.c.weight.data = model.a.weight.data.new_zeros(10, 8)[:8]
    model.c.bias.data = model.c.weight.data[0]
    with pytest.raises(UnsupportedModelError, match="same memory"):
        derive_spec(model, (VECTOR,))


def test_an_unknown_operator_pins_what_it_touches_and_is_named_with_module_and_line():
    spec = derive_spec(mlp(lambda n, x: n.middle(x), middle=Orthogonal(), into=4), (VECTOR,))
    reason = spec.pinned["a.weight[0]"]
    assert not spec.groups
    for part in ("qr", "test_bad_input.py", "torch.linalg.qr(x)[0]", "middle (Orthogonal)"):
        assert part in reason


def test_a_model_on_the_meta_device_cannot_be_proven():
    model = mlp(lambda n, x: x.relu()).to("meta")
    with pytest.raises(UnsupportedModelError, match="meta device"):
        derive_spec(model, (VECTOR.to("meta"),))
    with pytest.raises(SpecError, match="meta device"):
        prove_spec(PermutationSpec({}, {"w": "1"}), model, (VECTOR,))


def test_frozen_models_are_not_captured_on_a_fast_path():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
    model = Net(lambda n, x: n.b(n.e(n.a(x))), a=nn.Linear(6, 8), e=encoder, b=nn.Linear(8, 3))
    spec = derive_spec(model.requires_grad_(False), (torch.zeros(3, 5, 6),))
    assert spec.describe("e.layers.0.linear2.weight") == "a, e.layers.0.linear1"


@pytest.mark.parametrize("value", [float("nan"), 0.0])
def test_weights_of_no_use_are_drawn_anew(value):
    model = mlp(lambda n, x: x.relu())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    assert derive_spec(model, (VECTOR,)).describe("b.weight") == "3, a"


def test_inputs_in_a_dictionary_and_outputs_of_any_kind():
    model = Net(
        lambda n, batch: {"logits": n.b(n.a(batch["x"]).relu()), "name": "net", "none": None},
        a=nn.Linear(6, 8), b=nn.Linear(8, 3),
    )  # fmt: skip
    assert derive_spec(model, ({"x": VECTOR},)).describe("b.weight") == "3, a"


def test_a_model_whose_proof_does_not_fit_into_memory_is_refused(monkeypatch):
    model = Net(lambda n, x: n.b(n.a(x).relu()), a=nn.Linear(6, 8), b=nn.Linear(8, 3))
    count = (6 + 1) * 8 + (8 + 1) * 3
    memory = "fedma_flwr.structure.proving.prove._physical_memory"
    monkeypatch.setattr(memory, lambda: 42 * count - 1)
    with pytest.raises(UnsupportedModelError, match="GB of memory and this machine has"):
        derive_spec(model, (VECTOR,))
    monkeypatch.setattr(memory, lambda: 42 * count)
    assert derive_spec(model, (VECTOR,)).groups
