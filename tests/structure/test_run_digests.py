"""A run's digest tells whether the code took a way that is known."""

import torch
from torch import nn

from fedma_flwr.structure import derive_spec
from fedma_flwr.structure.deriving import propose
from fedma_flwr.structure.deriving.run_digests import run_digest
from tests.structure.networks import Net

ONE, OTHER = torch.ones(2, 6), -torch.ones(2, 6)


def model(run):
    return Net(run, a=nn.Linear(6, 8), c=nn.Linear(6, 8), b=nn.Linear(8, 3))


def by_sign(net, x):
    return net.b(net.a(x).relu() if x.sum() > 0 else net.a(x).tanh())


def by_layer(net, x):
    return net.b((net.a if x.sum() > 0 else net.c)(x))


def by_number(net, x):
    return net.b(net.a(x) * (2.0 if x.sum() > 0 else 3.0))


def by_order(net, x):
    first, second = net.a(x), net.c(x)
    return net.b(first - second if x.sum() > 0 else second - first)


def test_other_values_on_the_same_way_have_the_same_digest():
    net = model(by_sign).eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert run_digest(net, (ONE,)) == run_digest(net, (2 * ONE,))
    assert run_digest(net, (ONE,)) != run_digest(net, (torch.ones(3, 6),))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_operators_layers_numbers_and_order_count():
    for run in (by_sign, by_layer, by_number, by_order):
        net = model(run).eval()
        assert run_digest(net, (ONE,)) != run_digest(net, (OTHER,)), run.__name__


def test_chance_does_not_count():
    net = model(lambda n, x: n.b(nn.functional.dropout(n.a(x), 0.5, n.training))).train()
    assert run_digest(net, (ONE,)) == run_digest(net, (ONE,))


def test_a_known_way_is_not_captured_again(monkeypatch):
    captured = []
    capture = propose.capture_run
    monkeypatch.setattr(
        propose, "capture_run", lambda *args: captured.append(args) or capture(*args)
    )
    spec = derive_spec(model(by_layer), (ONE,))
    assert len(captured) == 2  # the other layer, in both modes
    assert spec.describe("a.weight") == spec.describe("c.weight")
    assert len(spec.groups) == 1
