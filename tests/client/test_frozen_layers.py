"""Layers that a user froze: their stages are passed through, and late changes are named."""

import pytest
import torch
from flwr.serverapp.exception import AggregationError
from torch import nn

from fedma_flwr import FedMA
from tests.client.settled_runs import INPUTS, PLANS, run
from tests.toy import Net


class Frozen(Net):
    """A model of which some layers are not trained."""

    def __init__(self, *fixed, middle=nn.Identity):
        super().__init__()
        self.n = middle()
        for name in fixed:
            getattr(self, name).requires_grad_(False)

    def forward(self, x):
        return self.c(torch.relu(self.b(torch.relu(self.n(self.a(x))))))


OPTIMIZERS = {
    "sgd": None,
    "all parameters": lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
    "decay": lambda model: torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], weight_decay=0.5
    ),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("fixed", ["c", "b", "bc"])
def test_a_stage_in_which_nothing_is_left_to_train_is_passed_through(fixed, plan, optimizer):
    torch.manual_seed(0)
    initial = Frozen(*fixed).state_dict()

    def make():
        model = Frozen(*fixed)
        model.load_state_dict(initial)
        return model

    state = run(make, optimizer=optimizer, **plan)

    if "c" in fixed:  # a classifier that is fixed is not solved either
        assert torch.equal(state["c.bias"], initial["c.bias"])
    assert not torch.equal(state["a.bias"], initial["a.bias"])


def test_statistics_are_estimated_on_settled_weights_where_nothing_is_trained():
    seen = []

    def make():
        return Frozen("c", middle=lambda: nn.BatchNorm1d(12))

    run(make, seen=seen, optimizer=OPTIMIZERS["decay"], head="trained")

    stages = [(stage, state) for stage, state in seen if stage.name != "local"]
    assert stages
    assert all(float(state["n.running_var"].min()) > 0 for _, state in stages)


def test_who_unfreezes_what_is_settled_is_told_so():
    def unfreeze(model):
        return model.requires_grad_(True)

    with pytest.raises(AggregationError, match=r"'a.weight' was changed.*it was unfrozen"):
        run(Net, change=unfreeze, head="trained")


def test_who_freezes_the_rest_after_loading_is_told_to_do_it_before():
    def freeze(model):
        model.c.requires_grad_(False)
        return model

    with pytest.raises(AggregationError, match=r"Nothing is left to train.*Freeze them before"):
        run(Net, change=freeze, head="trained")


def test_a_head_that_is_frozen_is_solved_only_if_that_is_asked_for():
    arguments = {"model": Frozen("c"), "example_inputs": INPUTS}

    assert FedMA(**arguments).settings.solver is None
    assert FedMA(**arguments, head="solved").settings.solver is not None
