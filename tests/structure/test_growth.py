"""Growth that is called proven holds: by any number, at any place, alone and with others."""

import copy
import itertools

import pytest
import torch
from torch import nn

from fedma_flwr.structure import derive_spec, resize
from fedma_flwr.structure.proving.growth_trials import growth_of, trials_of, without_sizes
from tests.structure.networks import LSTM, Net, ResNet, tokens

VECTOR = torch.zeros(4, 6)
SERIES = torch.zeros(3, 5, 6)


def gated(net, x):
    value, gate = net.b(net.a(x).relu()).chunk(2, -1)
    return net.c(net.m(value).relu() * gate.sigmoid())


def sliced(net, x):
    h = net.a(x)
    half = h.shape[1] // 2
    return net.c(torch.cat([h[:, :half].sigmoid(), h[:, half:].tanh()], 1))


def centred_in_training(net, x):
    h = net.a(x)
    return net.c((h - h.mean(-1, keepdim=True) if net.training else h).relu())


def over_tokens(net, x):
    """Statistics over units, one pair for each token, in training."""
    return net.c(net.norm(net.a(x)))


def two_heads(net, x):
    q, k, v = (layer(x).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (net.q, net.k, net.v))
    weights = (q @ k.mT * net.scale).softmax(-1)
    return net.c((weights @ v).transpose(1, 2).flatten(2))


class Half(nn.Module):
    """Two halves by width // 2, behind another layer: growing both alike looks harmless."""

    def __init__(self):
        super().__init__()
        self.stem, self.cv = nn.Linear(6, 6), nn.Linear(6, 8)
        self.out, self.head = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x):
        h = self.cv(self.stem(x).relu())
        half = h.shape[1] // 2
        h = self.out(torch.cat([h[:, :half].relu(), h[:, half:].tanh()], 1))
        return self.head(h.relu())


def dead_halves(net, x):
    """With two inputs, a quarter of the units are dead: to cut elsewhere changes nothing there."""
    h = net.a(x).relu()
    half = h.shape[1] // 2
    return net.c(torch.cat([h[:, :half], -h[:, half:]], 1))


def linear(inputs, outputs):
    return nn.Linear(inputs, outputs)


# name: network, inputs, the groups that grow
CASES = {
    "gated": (
        Net(gated, a=linear(6, 7), b=linear(7, 16), m=linear(8, 8), c=linear(8, 3)),
        VECTOR, {"a"},
    ),
    "sliced": (Net(sliced, a=linear(6, 8), c=linear(8, 3)), VECTOR, set()),
    "centred_in_training": (
        Net(centred_in_training, a=linear(6, 8), c=linear(8, 3)), VECTOR, set(),
    ),
    "over_tokens": (
        Net(over_tokens, a=linear(6, 8), norm=nn.BatchNorm1d(5), c=linear(8, 3)), SERIES, set(),
    ),
    "two_heads": (
        Net(two_heads, q=linear(6, 8), k=linear(6, 8), v=linear(6, 8), c=linear(8, 3), scale=0.5),
        SERIES, {"q.units2", "v"},
    ),
    "residual": (ResNet(1, widths=(4, 4, 6)), torch.zeros(2, 1, 8, 8), None),
    "recurrent": (LSTM(), tokens(80, 2, 5), {"encoder", "lstm"}),
}  # fmt: skip


def grown(model, spec, generator):
    """The model with every group that can grow at a random larger width."""
    names = [name for name, group in spec.groups.items() if group.growable]
    widths = {
        name: spec.sizes[name] + int(torch.randint(1, 6, (), generator=generator)) for name in names
    }
    places = {
        name: torch.randperm(width, generator=generator)[: spec.sizes[name]]
        for name, width in widths.items()
    }
    state = spec.expand(model.state_dict(), places, widths)
    wide = resize(copy.deepcopy(model), state)
    wide.load_state_dict(state)
    return wide


@pytest.mark.parametrize("name", CASES)
def test_what_grows_may_grow_at_random(name):
    model, inputs, wanted = CASES[name]
    spec = derive_spec(model, (inputs,))
    growing = {name for name, group in spec.groups.items() if group.growable}
    assert growing == (set(spec.groups) if wanted is None else wanted)
    model = copy.deepcopy(model).double()
    inputs = torch.randn_like(inputs.double()) if inputs.is_floating_point() else inputs
    generator = torch.Generator().manual_seed(0)
    for training in (False, True):
        for _ in range(3):
            wide = grown(model, spec, generator).train(training)
            torch.testing.assert_close(wide(inputs), copy.deepcopy(model).train(training)(inputs))


@pytest.mark.parametrize("seed", range(12))
def test_growth_is_not_proven_by_luck(seed):
    """Neither by groups that are dropped later, nor by units that are dead."""
    torch.manual_seed(seed)
    spec = derive_spec(Half(), (torch.zeros(4, 6),))
    assert {n for n, g in spec.groups.items() if g.growable} == {"stem", "out"}
    model = Net(dead_halves, a=linear(6, 8), c=linear(8, 3))
    spec = derive_spec(model, (torch.zeros(2, 6),))
    assert not any(group.growable for group in spec.groups.values())


@pytest.mark.parametrize("count", [1, 2, 5, 6, 7, 40])
def test_trials_are_of_all_together_and_of_any_group_doubled_without_any_other(count):
    groups = [str(number) for number in range(count)]
    trials = trials_of(groups)
    assert [set(trial) for trial in trials[:3]] == [set(groups)] * 3
    doubled = [set(trial) for trial in trials[3:]]
    for group in groups:
        assert sorted(trial[group][0] for trial in trials[:3]) == [1, 2, 3]
        assert {trial[group][1] for trial in trials[:3]} == {"first", "middle", "last"}
        assert all(trial[group][0] == 0 for trial in trials[3:] if group in trial)
    for one, other in itertools.permutations(groups, 2):
        assert any(one in trial and other not in trial for trial in doubled)
    for one, other in itertools.pairwise(groups):
        assert any(trial[one][0] != trial[other][0] for trial in trials[:3])


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("place", ["first", "middle", "last", "spread"])
def test_a_group_grows_at_a_place(size, place):
    for more in (0, 1, 3):
        old = growth_of(size, (more, place))
        assert len(old) == size + (more or size)
        assert int(old.sum()) == size
        assert bool(old[0]) == (place != "first")
        assert bool(old[-1]) == (place == "first" or (place == "middle" and size > 1))


def test_a_projection_may_not_become_as_wide_as_its_hidden_state():
    """Only when it is doubled alone, nothing else tells."""
    model = Net(
        lambda n, x: n.c(n.rnn(x)[0].mean(1)),
        rnn=nn.LSTM(6, 8, proj_size=4, batch_first=True),
        c=linear(4, 3),
    )
    spec = derive_spec(model, (SERIES,))
    assert [group.growable for group in spec.groups.values() if group.size == 4] == [False]


def test_a_group_that_cannot_grow_takes_growth_from_no_other_and_says_why():
    model, inputs, _ = CASES["gated"]
    spec = derive_spec(model, (inputs,))
    assert {"b", "b.units2"} <= {n for n, g in spec.groups.items() if not g.growable}
    reasons = {group.reason for group in spec.groups.values() if not group.growable}
    assert all("together with others" not in reason for reason in reasons)
    assert reasons == {without_sizes(reason) for reason in reasons}


def test_sizes_are_no_part_of_a_reason():
    assert without_sizes("shapes (4x9 and 10x3), conv2d, [2, -1]") == (
        "shapes (N and N), conv2d, [N, -N]"
    )
