"""Narrow clients of a model with batch norm, and groups that keep their width."""

import pytest
import torch
from flwr.app import ArrayRecord
from torch import nn

from fedma_flwr import FedMA, load_model
from fedma_flwr.structure import PermutationSpec, UnitGroup, derive_spec
from fedma_flwr.structure.narrowing import narrow_widths
from fedma_flwr.testing import InProcessGrid
from tests.toy import SPEC, data, make_app, reply

WIDTHS = {"2": 0.5, "3": 0.25}


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(2, 12)
        self.norm = nn.BatchNorm1d(12)
        self.c = nn.Linear(12, 2)

    def forward(self, x):
        return self.c(torch.relu(self.norm(self.a(x))))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reestimate_statistics": False},
        {"personal": ("norm.*",)},
        {"fraction_train": 0.5},
        {"wire_dtype": "float16"},
        {"server_learning_rate": 0.5, "weighted_units": True},
        {"width_selection": "rolling"},
    ],
    ids=str,
)
def test_statistics_of_a_narrow_client_are_those_of_its_own_units(options):
    trained = {}

    def train(message, context, client):
        model = load_model(Normed(), message)
        widths = model.a.out_features, model.norm.num_features, len(model.norm.running_mean)
        trained.setdefault(client, set()).add(widths)
        model.train()
        x, y = data(client)
        nn.functional.cross_entropy(model(x), y).backward()
        return reply(message, model, client)

    model = Normed()
    strategy = FedMA(
        model=model,
        example_inputs=(torch.zeros(4, 2),),
        client_widths=WIDTHS,
        fraction_evaluate=0.0,
        **options,
    )
    grid = InProcessGrid(make_app(train), 6)
    strategy.start(grid, ArrayRecord(model.state_dict()), num_rounds=4)

    assert trained[2] == {(6, 6, 6)}
    assert trained[3] == {(3, 3, 3)}
    assert not any(record.dropped for record in strategy.history)


def test_groups_that_cannot_grow_keep_their_width_and_ratios_below_a_unit_are_one():
    spec = PermutationSpec(
        groups={"h": 8, "fixed": UnitGroup(6, growable=False, reason="it is unrolled")},
        axes={"a.weight": "h, 2", "b.weight": "fixed, h", "c.weight": "2, fixed"},
    )

    assert narrow_widths(spec, 0.5) == {"h": 4, "fixed": 6}
    assert narrow_widths(spec, 0.01) == {"h": 1, "fixed": 6}
    assert narrow_widths(SPEC, 1.0) == {"a": 12, "b": 8}


def test_a_ratio_that_no_group_can_follow_is_refused():
    spec = PermutationSpec(
        groups={"h": UnitGroup(8, growable=False, reason="it is unrolled")},
        axes={"a.weight": "h, 2", "b.weight": "2, h"},
    )

    with pytest.raises(ValueError, match=r"client_widths was .*no group .*it is unrolled"):
        FedMA(spec=spec, client_widths={"1": 0.5})


class Attention(nn.Module):
    """Four heads of four units each: what grows, and is left out, are whole heads."""

    def __init__(self):
        super().__init__()
        self.e = nn.Linear(2, 6)
        self.q, self.k, self.v = (nn.Linear(6, 16) for _ in range(3))
        self.c = nn.Linear(16, 2)

    def forward(self, x):
        e = torch.relu(self.e(x[:, None, :].expand(-1, 3, -1)))
        q, k, v = (
            layer(e).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.c(torch.relu(mixed.transpose(1, 2).flatten(2)).mean(1))


def test_narrow_attention_has_whole_heads():
    trained = set()

    def train(message, context, client):
        model = load_model(Attention(), message)
        trained.add((client, model.q.out_features))
        x, y = data(client)
        nn.functional.cross_entropy(model(x), y).backward()
        return reply(message, model, client)

    model = Attention()
    spec = derive_spec(model, (torch.zeros(4, 2),))
    strategy = FedMA(spec=spec, client_widths=WIDTHS, fraction_evaluate=0.0)
    grid = InProcessGrid(make_app(train), 4)
    strategy.start(grid, ArrayRecord(model.state_dict()), num_rounds=2)

    assert trained == {(0, 16), (1, 16), (2, 8), (3, 4)}
    assert not any(record.dropped for record in strategy.history)
