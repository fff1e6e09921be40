"""What is settled stays so, whatever a forward pass or an optimizer does to it."""

import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.exception import AggregationError
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrizations, spectral_norm

from fedma_flwr import FedMA, Stage, fedma_mod, load_model
from fedma_flwr.testing import InProcessGrid
from tests.toy import Net, data, fit

INPUTS = (torch.zeros(4, 2),)
PLANS = {
    "default": {},
    "trained head": {"head": "trained"},
    "layer by layer": {"groups_per_stage": 1, "head": "trained"},
    "as sent": {"groups_per_stage": 1, "head": "trained", "reestimate_statistics": False},
    "one shot": {"one_shot": True},
    "damped": {"groups_per_stage": 1, "head": "trained", "server_learning_rate": 0.5},
}


def run(make, *, seen=None, change=lambda model: model, optimizer=None, **options):
    """The model after two rounds; `seen` gets each stage and the model as it was trained."""
    app = ClientApp(mods=[fedma_mod])

    @app.train()
    def train(message, context):
        client = context.node_config["partition-id"]
        model = change(load_model(make(), message)).train()
        if optimizer is None:
            fit(model, client)
        else:
            steps, (x, y) = optimizer(model), data(client)
            for _ in range(3):
                steps.zero_grad()
                cross_entropy(model(x), y).backward()
                steps.step()
        if seen is not None:
            state = {n: t.detach().clone() for n, t in model.state_dict().items()}
            seen.append((Stage.from_message(message), state))
        metrics = MetricRecord({"num-examples": 60})
        records = {"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}
        return Message(RecordDict(records), reply_to=message)

    strategy = FedMA(model=make(), example_inputs=INPUTS, fraction_evaluate=0.0, **options)
    initial = ArrayRecord(make().state_dict())
    result = strategy.start(InProcessGrid(app, 3), initial, num_rounds=2)
    return result.arrays.to_torch_state_dict()


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


def test_a_head_that_is_frozen_is_solved_only_if_that_is_asked_for():
    arguments = {"model": Frozen("c"), "example_inputs": INPUTS}

    assert FedMA(**arguments).settings.solver is None
    assert FedMA(**arguments, head="solved").settings.solver is not None


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
