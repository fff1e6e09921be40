"""`load_model(net, arrays, width=...)`: a narrow model from a global one."""

import pytest
import torch
from torch import nn

from fedma_flwr import FedMA, load_model
from fedma_flwr.protocol import ClientError
from fedma_flwr.structure import SpecError, derive_spec
from tests.toy import SPEC, Net, initial_arrays


class Other(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(3, 7)
        self.out = nn.Linear(7, 2)

    def forward(self, x):
        return self.out(torch.relu(self.hidden(x)))


def test_it_has_the_first_units_of_a_strategys_model():
    FedMA(spec=SPEC)

    narrow = load_model(Net(), initial_arrays(), width=0.25)

    whole = initial_arrays().to_torch_state_dict()
    assert (narrow.a.out_features, narrow.b.out_features) == (3, 2)
    assert narrow.b.weight.equal(whole["b.weight"][:2, :3])
    assert narrow.c.weight.equal(whole["c.weight"][:, :2])


def test_a_group_has_one_unit_at_least_also_of_a_grown_model():
    spec = derive_spec(Other(), (torch.zeros(1, 3),))
    net = Other()
    grown = spec.expand(net.state_dict(), {"hidden": torch.arange(7)}, {"hidden": 11})

    assert load_model(Other(), grown, width=0.01, spec=spec).hidden.out_features == 1
    assert load_model(Other(), grown, width=0.5, spec=spec).hidden.out_features == 3
    assert load_model(Other(), grown).hidden.out_features == 11


def test_without_a_spec_it_says_what_to_give():
    class Unknown(Other):
        def __init__(self):
            super().__init__()
            self.hidden = nn.Linear(3, 9)
            self.out = nn.Linear(9, 2)

    with pytest.raises(SpecError, match=r"spec=strategy\.settings\.spec"):
        load_model(Unknown(), Unknown().state_dict(), width=0.5)


@pytest.mark.parametrize("width", [0.0, -1.0, 1.5, float("nan")])
def test_a_width_that_is_none_is_refused(width):
    with pytest.raises(ValueError, match=r"width was .*above 0, at most 1"):
        load_model(Net(), initial_arrays(), width=width, spec=SPEC)


def test_a_message_has_its_own_width():
    from flwr.app import Message, RecordDict

    from fedma_flwr.testing import InProcessGrid
    from tests.toy import make_app

    InProcessGrid(make_app(), 1)
    content = RecordDict({"arrays": initial_arrays()})
    message = Message(content, dst_node_id=1, message_type="train")
    with pytest.raises(ClientError, match="width is for arrays"):
        load_model(Net(), message, width=0.5)
