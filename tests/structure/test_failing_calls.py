"""Inputs that a model does not take: the error says what they are, and where the model fails."""

import pytest
import torch
from torch import nn

from fedma_flwr import FedMA
from fedma_flwr.structure import PermutationSpec, UnsupportedModelError, derive_spec, prove_spec


def stack():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 3))


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.body = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x, scale=1.0):
        return self.body(self.conv(x).view(len(x), 16)) * scale


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.head = nn.LazyLinear(8), nn.Linear(7, 3)

    def forward(self, x):
        return self.head(self.hidden(x))


EMBEDDED = nn.Sequential(nn.Embedding(5, 8), nn.Flatten(), nn.Linear(16, 3))


@pytest.mark.parametrize(
    ("model", "inputs", "said"),
    [
        (
            stack(),
            (torch.zeros(2, 1, 14, 14),),
            [
                "float32 of shape (2, 1, 14, 14)",
                "in '2', Linear(in_features=16",
                "float32 of shape (2, 576)",
            ],
        ),
        (Own(), (torch.zeros(2, 14),), ["in 'conv', Conv2d", "float32 of shape (2, 14)"]),
        (
            Own(),
            (torch.zeros(2, 1, 6, 6),),
            [
                "in Own.forward(x, scale=1.0) (test_failing_calls.py, line",
                ": return self.body(self.conv(x).view(len(x), 16)) * scale)",
            ],
        ),
        (Own(), {"y": torch.zeros(2, 1, 4, 4)}, ["model(**", "'y': float32", "'y'"]),
        (Own(), (torch.zeros(2, 1, 4, 4, dtype=torch.int64),), ["int64 from 0 to 0", "'conv'"]),
        (EMBEDDED, (torch.zeros(2, 2),), ["in '0', Embedding(5, 8)", "float32 of shape (2, 2)"]),
        (EMBEDDED, (torch.full((2, 2), 7),), ["int64 from 7 to 7 of shape (2, 2)", "Embedding"]),
        (Lazy(), (torch.zeros(2, 5),), ["in 'head', Linear", "float32 of shape (2, 8)"]),
    ],
)
def test_shapes_and_the_failing_module_are_named(model, inputs, said):
    with pytest.raises(UnsupportedModelError) as refused:
        FedMA(model=model, example_inputs=inputs)
    text = str(refused.value)
    assert "does not work" in text
    assert all(words in text for words in said), text
    assert "Write the spec by hand" not in text  # that would be no cure
    with pytest.raises(UnsupportedModelError, match="does not work"):
        derive_spec(model, inputs)


def test_a_spec_made_by_hand_is_proven_on_inputs_that_work():
    spec = PermutationSpec(
        {}, {"0.weight": "4, 1, 3, 3", "0.bias": "4", "2.weight": "3, 16", "2.bias": "3"}
    )
    with pytest.raises(UnsupportedModelError, match=r"in '2', Linear.*float32 of shape \(2, 576\)"):
        prove_spec(spec, stack(), (torch.zeros(2, 1, 14, 14),))


def test_a_model_that_works_is_refused_for_its_own_reason():
    class Unknown(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x):
            if torch.compiler.is_exporting() or x.dtype == torch.float64:
                raise RuntimeError("not so")
            return self.b(self.a(x))

    with pytest.raises(UnsupportedModelError) as refused:
        derive_spec(Unknown(), (torch.zeros(2, 4),))
    assert "not so" in str(refused.value)
    assert "does not work" not in str(refused.value)
