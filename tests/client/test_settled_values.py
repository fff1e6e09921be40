"""What is settled stays so, whatever a forward pass or an optimizer does to it."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm

from fedma_flwr import FedMA, load_model
from tests.client.settled_runs import INPUTS, PLANS, run
from tests.toy import Net


class Step(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("step", torch.tensor(0))

    def forward(self, x):
        if self.training:
            self.step += 1
        return x


class MovingAverage(nn.Module):
    """It replaces its buffer rather than writing to it, and its derivatives need it."""

    def __init__(self, width=12):
        super().__init__()
        self.register_buffer("average", torch.zeros(width))
        self.register_buffer("largest", torch.tensor(float("-inf")))

    def forward(self, x):
        if self.training:
            self.average = 0.9 * self.average + 0.1 * x.detach().mean(0)
            self.largest.copy_(torch.maximum(self.largest, x.detach().max()))
        return x * (1 + self.average)


class Codebook(nn.Module):
    """Vector quantisation with a straight-through gradient; its codes follow their inputs."""

    def __init__(self):
        super().__init__()
        self.register_buffer("codes", torch.randn(6, 12, generator=torch.Generator()))

    def forward(self, x):
        nearest = torch.cdist(x, self.codes).argmin(1)
        if self.training:
            with torch.no_grad():
                self.codes.index_add_(0, nearest, 0.05 * (x - self.codes[nearest]))
        return x + (self.codes[nearest] - x).detach()


def with_middle(middle):
    def make():
        layers = (nn.Linear(2, 12), middle(), nn.ReLU(), nn.Linear(12, 8), nn.ReLU())
        return nn.Sequential(*layers, nn.Linear(8, 2))

    return make


MOVING = {
    "step": with_middle(Step),
    "moving average": with_middle(MovingAverage),
    "codebook": with_middle(Codebook),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("make", MOVING.values(), ids=MOVING)
def test_buffers_that_move_do_not_end_a_run(make, plan):
    state = run(make, **plan)

    assert all(tensor.isfinite().all() for tensor in state.values())


def test_settled_buffers_keep_their_values_while_others_are_trained():
    seen = []
    run(MOVING["moving average"], seen=seen, **PLANS["layer by layer"])

    last = [state for stage, state in seen if stage.round == 2 and stage.name == "head"]
    names = {name for stage, _ in seen for name in stage.frozen if name.startswith("1.")}
    assert names == {"1.average", "1.largest"}
    assert all(torch.equal(state[name], last[0][name]) for state in last for name in names)


def old():
    layers = (nn.Linear(2, 12), nn.ReLU(), spectral_norm(nn.Linear(12, 8)), nn.ReLU())
    return nn.Sequential(*layers, nn.Linear(8, 2))


def new():
    layers = (nn.Linear(2, 12), nn.ReLU(), parametrizations.spectral_norm(nn.Linear(12, 8)))
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(8, 2))


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("initialisation", ["common", "own"])
@pytest.mark.parametrize("make", [old, new])
def test_a_spectral_norm_is_one_after_averaging(make, initialisation, plan):
    state = run(make, initialisation=initialisation, **plan)

    model = load_model(make(), state).eval()
    model(torch.zeros(2, 2))  # the older form computes its weight in a pass
    vectors = [t for n, t in state.items() if n.endswith(("_u", "_v"))]
    assert len(vectors) == 2
    assert all(float(vector.norm()) == pytest.approx(1.0, abs=1e-5) for vector in vectors)
    norm = torch.linalg.matrix_norm(model[2].weight.detach(), 2)
    assert float(norm) == pytest.approx(1.0, abs=1e-3)


def output_norm(**options):
    return lambda: nn.Sequential(
        nn.Linear(2, 12), nn.ReLU(), nn.Linear(12, 2), nn.BatchNorm1d(2, **options)
    )


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("options", [{}, {"affine": False}])
def test_a_batch_norm_may_stand_on_the_output(options, plan):
    state = run(output_norm(**options), **plan)

    assert int(state["3.num_batches_tracked"]) > 0
    assert not torch.equal(state["3.running_mean"], torch.zeros(2))


def test_a_norm_on_the_output_settles_as_a_whole():
    strategy = FedMA(model=output_norm()(), example_inputs=INPUTS, groups_per_stage=1)

    assert strategy.settings.solver is None
    names = {n for n in strategy.settings.spec.axes if n.startswith("3.")}
    assert names <= set(strategy.settings.plan.stages[-1].settles)


class Outputs(Net):
    """A net whose outputs go through something without parameters."""

    def __init__(self, last):
        super().__init__()
        self.last = last

    def forward(self, x):
        return self.last(super().forward(x))


@pytest.mark.parametrize(
    ("last", "solved"),
    [
        (nn.Identity(), True),
        (nn.LogSoftmax(1), True),
        (nn.BatchNorm1d(2, affine=False, track_running_stats=False), False),
        (nn.LayerNorm(2, elementwise_affine=False), False),
    ],
)
def test_a_head_behind_which_a_norm_stands_is_trained(last, solved):
    settings = FedMA(model=Outputs(last), example_inputs=INPUTS).settings

    assert (settings.solver is not None) == solved


class Table(nn.Module):
    """An embedding that rescales its rows while it is read."""

    def __init__(self):
        super().__init__()
        self.e = nn.Embedding(11, 8, max_norm=0.5)
        self.a = nn.Linear(8, 16)
        self.c = nn.Linear(16, 2)

    def forward(self, x):
        words = (x.abs() * 3).long().clamp(max=10)
        return self.c(self.a(self.e(words).mean(1)).relu())


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_table_may_rescale_its_rows(plan):
    settings = FedMA(model=Table(), example_inputs=INPUTS).settings
    state = run(Table, **plan)

    assert set(settings.spec.tensor_groups("e.weight")) == {"e"}
    assert state["e.weight"].shape[0] == 11
