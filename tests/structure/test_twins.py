"""Networks in pairs: what is coupled outside `forward` is permuted together."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fedma_flwr.structure import PermutationSpec, derive_spec


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 6))


class Pair(nn.Module):
    """An online network, and one whose weights follow it."""

    follows = "target"

    def __init__(self) -> None:
        super().__init__()
        self.online = network()
        self.predictor = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6))
        self.build()

    def build(self) -> None:
        self.target = copy.deepcopy(self.online).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.predictor(self.online(x)) * self.target(x + 1)

    def coupled(self) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.online.parameters(), self.target.parameters(), strict=True))

    def update(self) -> None:
        with torch.no_grad():
            for online, target in self.coupled():
                target.mul_(0.5).add_(0.5 * online)


class Detached(Pair):
    def build(self) -> None:
        self.target = copy.deepcopy(self.online)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.target(x + 1)
        return self.predictor(self.online(x)) * target


class NotReached(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return self.predictor(self.online(x))


class NeitherFrozenNorDetached(Detached):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.predictor(self.online(x)), self.target(x + 1)


class Trained(Detached):
    """A pair that is no longer equal when the spec is derived."""

    def build(self) -> None:
        self.target = network()


class InAList(Pair):
    def build(self) -> None:
        self.pair = nn.ModuleList([self.online, copy.deepcopy(self.online).requires_grad_(False)])
        self.target = self.pair[1]

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.target(x + 1)
        return self.predictor(self.online(x)) * target


class Averaged(NotReached):
    def build(self) -> None:
        self.target = AveragedModel(self.online)

    def coupled(self) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.online.parameters(), self.target.module.parameters(), strict=True))


class InBuffers(NotReached):
    """Averages of all weights under names without dots, as diffusion models keep them."""

    def build(self) -> None:
        for name, parameter in list(self.named_parameters()):
            self.register_buffer("average_" + name.replace(".", ""), parameter.detach().clone())

    def coupled(self) -> list[tuple[Tensor, Tensor]]:
        buffers = dict(self.named_buffers())
        return [(p, buffers["average_" + n.replace(".", "")]) for n, p in self.named_parameters()]


PAIRS = [Pair, Detached, NotReached, NeitherFrozenNorDetached, Trained, InAList]


def change_after_an_update(model: Pair, spec: PermutationSpec) -> float:
    g = torch.Generator().manual_seed(1)
    orders = {n: torch.randperm(size, generator=g) for n, size in spec.sizes.items()}
    with torch.no_grad():
        for parameter in model.online.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=g) * 0.3)
    other = copy.deepcopy(model)
    other.load_state_dict(spec.permute(model.state_dict(), orders))
    model.update()
    other.update()
    permuted = spec.permute(model.state_dict(), orders)
    state = other.state_dict()
    return max(float((permuted[name] - state[name]).abs().max()) for name in state)


@pytest.mark.parametrize("kind", [*PAIRS, Averaged, InBuffers])
def test_an_update_outside_forward_commutes_with_permutations(kind: type[Pair]) -> None:
    torch.manual_seed(0)
    model = kind()
    spec = derive_spec(model, (torch.randn(4, 5),))
    assert 9 in spec.sizes.values()
    assert change_after_an_update(model, spec) < 1e-6


class Codebook(nn.Module):
    """A table whose rows are read, and a sum that it is made of outside `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(5, 8), nn.Linear(8, 3)
        self.table = nn.Parameter(torch.randn(7, 8), requires_grad=False)
        self.register_buffer("sums", self.table.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        nearest = torch.cdist(self.encode(x), self.table).argmin(-1)
        return self.decode(self.table[nearest] + self.encode(x))


def test_a_single_tensor_may_have_a_twin() -> None:
    spec = derive_spec(Codebook(), (torch.randn(4, 5),))
    assert spec.axes["sums"] == spec.axes["table"]
    assert "encode" in str(spec.axes["sums"][1])


def test_layers_of_one_list_are_no_pairs() -> None:
    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 6))
            self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(4))
            self.layers[:2].requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = x + layer(x)
            return x

    spec = derive_spec(Layers(), (torch.randn(4, 6),))
    assert list(spec.sizes) == [f"layers.{number}.0" for number in range(4)]


def test_constants_of_a_pair_are_still_constants() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(5, 9), nn.Linear(9, 3)
            self.register_buffer("shift", torch.linspace(0, 1, 9))

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x).relu() + self.shift)

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.online = Shifted()
            self.target = copy.deepcopy(self.online).requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.online(x) + self.target(x)

    assert not derive_spec(Both(), (torch.randn(4, 5),)).groups
