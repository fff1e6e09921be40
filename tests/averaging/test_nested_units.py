"""Units inside units (heads, groups of channels): permuted copies are put together again."""

import copy

import pytest
import torch
from torch import nn

from fedma_flwr.averaging import ClientUpdate, settle_stage
from fedma_flwr.matching import BBPMAP
from fedma_flwr.structure import StagePlan, derive_spec, resize, signature, signature_tensors
from fedma_flwr.structure.nested_units import sorted_rows
from tests.structure.networks import Net, derived


def grouped(net, x):
    return net.c(net.b(net.a(x).relu()).relu()).mean((2, 3))


def encoder(net, x):
    return net.b(net.t(net.a(x)).mean(1))


def networks(name):
    """A model, inputs and its spec; in each some axis has two groups."""
    if name in ("attention", "transformer", "depthwise"):
        return derived(name)
    torch.manual_seed(0)
    if name == "grouped":
        a, b, c = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 12, 3, groups=3), nn.Conv2d(12, 4, 1)
        model, x = Net(grouped, a=a, b=b, c=c), torch.zeros(2, 2, 5, 5)
    else:
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0)
        model, x = Net(encoder, a=nn.Linear(5, 16), t=layer, b=nn.Linear(16, 3)), None
        x = torch.zeros(4, 6, 5)
    return model, x, derive_spec(model, (x,))


def put_together(spec, clients, per_stage):
    """Matched averaging; what clients do between stages is done here."""
    result, matched = {}, {}
    for stage in StagePlan.build(spec, per_stage).stages:
        updates = [ClientUpdate({n: c[n] for n in stage.uploads}, 1.0) for c in clients]
        widths = {name: 2 * group.size for name, group in spec.groups.items()}
        outcome = settle_stage(
            spec, stage, updates, matched=matched, matcher=BBPMAP(), max_widths=widths
        )
        result.update(outcome.tensors)
        matched |= outcome.widths
        for client, assignments in zip(clients, outcome.assignments, strict=True):
            rest = {n: t for n, t in client.items() if n not in result}
            client.update(spec.expand(rest, assignments, outcome.widths))
    return result


@pytest.mark.parametrize("per_stage", [1, "all"])
@pytest.mark.parametrize("noise", [0.0, 0.01])
@pytest.mark.parametrize("name", ["attention", "transformer", "depthwise", "grouped", "encoder"])
def test_permuted_copies_are_put_together_again(name, noise, per_stage):
    model, x, spec = networks(name)
    terms = [term for axes in spec.axes.values() for axis in axes for term in axis.terms]
    assert any(sum(isinstance(factor, str) for factor in term) > 1 for term in terms)
    model = copy.deepcopy(model).double()
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator).double()
    clients = []
    for _ in range(3):
        orders = {n: torch.randperm(s, generator=generator) for n, s in spec.sizes.items()}
        own = {
            n: t + noise * torch.randn(t.shape, generator=generator).double()
            for n, t in model.state_dict().items()
        }
        clients.append(spec.permute(own, orders))
    state = put_together(spec, clients, per_stage)
    assert {n: t.shape for n, t in state.items()} == {
        n: t.shape for n, t in model.state_dict().items()
    }
    again = resize(copy.deepcopy(model), state)
    again.load_state_dict(state)
    shape = x.shape
    x = torch.randn(shape, generator=generator).double() if x.is_floating_point() else x
    wanted = model.eval()(x)
    largest = (again.eval()(x) - wanted).abs().max() / wanted.abs().max()
    assert largest < (0.1 if noise else 1e-10)


def test_rows_of_units_do_not_depend_on_the_order_inside():
    model, _, spec = networks("encoder")
    heads, inner = "t.self_attn", "t.self_attn.units2"
    names = signature_tensors(spec, heads, frozenset({"a"}))
    state = model.state_dict()
    order = {inner: torch.randperm(4, generator=torch.Generator().manual_seed(1))}

    def rows(tensors):
        others = [name for name in spec.groups if name not in (heads, "a")]
        return signature(spec, heads, names, tensors, unmatched=others)

    torch.testing.assert_close(rows(spec.permute(state, order)), rows(state))
    changed = signature(spec, heads, names, spec.permute(state, order))
    assert not torch.allclose(changed, signature(spec, heads, names, state))


def test_the_distance_of_sets_is_that_of_their_best_order():
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(1, 5, 30, generator=generator)
    other = one[:, torch.randperm(5, generator=generator)]
    far = torch.randn(1, 5, 30, generator=generator)
    first, same, third = (sorted_rows([values], 5) for values in (one, other, far))
    torch.testing.assert_close(first, same)
    best = torch.cdist(one[0], far[0]).square()
    usual = float(best.min(1).values.sum())
    assert 0.1 * usual < float((first - third).square().sum()) < float(best.diagonal().sum())
    assert sorted_rows([one], 3).shape == (1, 3 * 64)
