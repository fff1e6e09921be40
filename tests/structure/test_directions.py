"""Weights that are divided by their norm: a unit more must have a direction."""

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fedma_flwr.structure import PermutationSpec, SpecError, derive_spec, resize

normed = nn.utils.parametrizations.weight_norm


class OwnNorm(nn.Module):
    """Weight normalisation written by hand; no operator tells of it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(outputs) + 0.5)
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        norms = self.weight.norm(dim=1)
        return x @ (self.weight * (self.scale / norms)[:, None]).T + self.bias


def old(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(layer)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (
        lambda: nn.Sequential(normed(nn.Linear(5, 9)), nn.ReLU(), normed(nn.Linear(9, 3))),
        (4, 5),
    ),
    "old": (lambda: nn.Sequential(old(nn.Linear(5, 9)), nn.ReLU(), old(nn.Linear(9, 3))), (4, 5)),
    "by hand": (lambda: nn.Sequential(OwnNorm(5, 9), nn.ReLU(), OwnNorm(9, 3)), (4, 5)),
    "convolutions": (
        lambda: nn.Sequential(
            normed(nn.Conv1d(2, 9, 3)), nn.ReLU(), normed(nn.ConvTranspose1d(9, 8, 3)), nn.Tanh(),
            normed(nn.Conv1d(8, 2, 3), dim=1),
        ),
        (4, 2, 12),
    ),
    "one norm for all": (
        lambda: nn.Sequential(normed(nn.Linear(5, 9), dim=None), nn.ReLU(), nn.Linear(9, 3)),
        (4, 5),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_normalised_layers_grow(name: str) -> None:
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model, x = make().double().eval(), torch.randn(shape).double()
    spec = derive_spec(model, (x,))
    assert spec.groups
    assert all(group.growable for group in spec.groups.values())
    places = {group: torch.arange(size) + 2 for group, size in spec.sizes.items()}
    widths = {group: size + 5 for group, size in spec.sizes.items()}
    state = spec.expand(model.state_dict(), places, widths)
    wide = resize(make().double().eval(), state)
    wide.load_state_dict(state)
    torch.testing.assert_close(wide(x), model(x))
    assert all(
        bool(g.isfinite().all())
        for g in torch.autograd.grad(wide(x).sum(), list(wide.parameters()))
    )


def test_directions_survive_json_copies_and_are_checked() -> None:
    spec = PermutationSpec({"a": 9}, {"v": "a, 5", "w": "3, a"}, directions={"v": 0})
    assert copy.deepcopy(spec) == spec == PermutationSpec.from_json(spec.to_json())
    wide = spec.expand({"v": torch.zeros(9, 5)}, {"a": torch.arange(9)}, {"a": 10})
    assert wide["v"][9].tolist() == [1.0] * 5
    with pytest.raises(SpecError, match=r"directions.*no such axis"):
        PermutationSpec({"a": 9}, {"v": "a, 5"}, directions={"v": 2})
    with pytest.raises(SpecError, match="`directions` names tensors"):
        PermutationSpec({"a": 9}, {"v": "a, 5"}, directions={"u": 0})
    assert "directions" not in PermutationSpec({"a": 9}, {"v": "a, 5"}).to_json()
