"""Models whose outputs are values or sigmoids: in runs, and against FedAvg."""

import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.exception import AggregationError
from torch import nn
from torch.nn import functional

from fedma_flwr import FedAvg, FedMA, fedma_mod, load_model
from fedma_flwr.averaging.ridge_regression import GRID
from fedma_flwr.protocol import CROSS_KEY, SQUARES_KEY
from fedma_flwr.testing import InProcessGrid

CLIENTS = 4
RATE = 0.01


class Net(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.hidden, self.second, self.head = (
            nn.Linear(4, 16),
            nn.Linear(16, 12),
            nn.Linear(12, outputs),
        )

    def features(self, x):
        return torch.relu(self.second(torch.relu(self.hidden(x))))

    def forward(self, x):
        return self.head(self.features(x))


def data(client, outputs):
    """Inputs lie elsewhere for each client, and clients have unequally many."""
    generator = torch.Generator().manual_seed(client)
    x = torch.randn(40 + 30 * client, 4, generator=generator) + torch.randn(4, generator=generator)
    mix = torch.randn(4, outputs, generator=torch.Generator().manual_seed(99))
    return x, 3 + 2 * torch.sin(x @ mix) + (x @ mix)


def everything(outputs):
    return [
        torch.cat(parts) for parts in zip(*(data(c, outputs) for c in range(CLIENTS)), strict=True)
    ]


def app_of(outputs, loss, tamper=None):
    app = ClientApp(mods=[fedma_mod])

    @app.train()
    def train(message, context):
        client = context.node_config["partition-id"]
        model, (x, y) = load_model(Net(outputs), message), data(client, outputs)
        optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9)
        torch.manual_seed(client)
        for _ in range(2):
            for rows in torch.randperm(len(x)).split(16):
                optimizer.zero_grad()
                loss(model(x[rows]), y[rows]).backward()
                optimizer.step()
        metrics = MetricRecord({"num-examples": len(x)})
        content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
        return Message(content, reply_to=message)

    def intercept(message, context):
        answer = app(message, context)
        if context.node_config["partition-id"] == 0 and not answer.has_error():
            arrays = next(iter(answer.content.array_records.values()))
            if CROSS_KEY in arrays:
                answer.content["arrays"] = ArrayRecord(tamper(dict(arrays.to_torch_state_dict())))
        return answer

    return app, intercept if tamper else None


def run(strategy, outputs, loss, rounds=1, *, tamper=None, seed=0):
    app, intercept = app_of(outputs, loss, tamper)
    torch.manual_seed(seed)
    grid = InProcessGrid(app, CLIENTS, intercept=intercept)
    return strategy.start(grid, ArrayRecord(Net(outputs).state_dict()), num_rounds=rounds).arrays


def fedma(outputs, **options):
    return FedMA(
        model=Net(outputs), example_inputs=torch.zeros(2, 4), fraction_evaluate=0.0, **options
    )


def loss_of(arrays, outputs, loss):
    x, y = everything(outputs)
    with torch.no_grad():
        return float(loss(load_model(Net(outputs), arrays)(x), y))


def sigmoids(z, y):
    return functional.binary_cross_entropy_with_logits(z, (y > 3).float())


@pytest.mark.parametrize("loss", [functional.mse_loss, sigmoids])
@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_default_is_ahead_of_fedavg_after_as_many_epochs(outputs, loss, seed):
    for rounds in (1, 3):
        plain = run(FedAvg(fraction_evaluate=0.0), outputs, loss, rounds, seed=seed)
        found = run(fedma(outputs), outputs, loss, rounds, seed=seed)
        assert loss_of(found, outputs, loss) < loss_of(plain, outputs, loss)


@pytest.mark.parametrize("outputs", [1, 2])
def test_the_head_is_the_ridge_over_all_clients_examples(outputs):
    x, y = everything(outputs)
    model = load_model(Net(outputs), run(fedma(outputs), outputs, functional.mse_loss))
    with torch.no_grad():
        phi = model.features(x).double()
    ones = torch.cat([phi, torch.ones(len(phi), 1)], 1)
    penalty = torch.eye(ones.shape[1]).double() * phi.square().mean() * len(phi)
    penalty[-1, -1] = 0.0
    errors = []  # the regulariser is chosen by cross-validation
    for strength in GRID:
        solved = torch.linalg.solve(ones.T @ ones + strength * penalty, ones.T @ y.double()).T
        errors.append(float((solved[:, :-1] - model.head.weight).abs().max()))
        if errors[-1] < 1e-3:
            torch.testing.assert_close(
                solved[:, -1], model.head.bias.double(), rtol=1e-3, atol=1e-3
            )
    assert min(errors) < 1e-3


@pytest.mark.parametrize(
    "options",
    [
        {"averaging": "median"},
        {"groups_per_stage": 1},
        {"initialisation": "own"},
        {"head_memory": 2, "fraction_train": 0.5},
        {"client_widths": {"0": 0.5, "1": 0.25}},
    ],
)
def test_values_go_with_other_options(options):
    before = loss_of(ArrayRecord(Net(2).state_dict()), 2, functional.mse_loss)
    strategy = fedma(2, **options)
    found = run(strategy, 2, functional.mse_loss, rounds=2)
    assert loss_of(found, 2, functional.mse_loss) < before / 2
    assert not any(record.dropped for record in strategy.history)


@pytest.mark.parametrize(
    ("tamper", "words"),
    [
        (lambda t: {**t, SQUARES_KEY: 1e6 * t[SQUARES_KEY]}, "max_norm_ratio"),
        (lambda t: {**t, SQUARES_KEY: t[SQUARES_KEY] / 9}, "larger than their squares allow"),
        (lambda t: {n: v for n, v in t.items() if n != SQUARES_KEY}, "cannot be decoded|expected"),
    ],
)
def test_a_client_with_impossible_values_is_dropped_alone(tamper, words):
    strategy = fedma(2)
    run(strategy, 2, functional.mse_loss, tamper=tamper)
    (dropped,) = [record.dropped for record in strategy.history if record.dropped]
    assert list(dropped) == ["0"]
    assert any(word in dropped["0"] for word in words.split("|"))


def head_stages(strategy):
    return [record.round for record in strategy.history if record.name == "head"]


@pytest.mark.parametrize("outputs", [1, 2])
def test_another_loss_keeps_the_averaged_head_and_asks_for_moments_once(outputs, caplog):
    loss = functional.huber_loss
    strategy = fedma(outputs)
    found = run(strategy, outputs, loss, rounds=4)
    assert head_stages(strategy) == [1]
    assert caplog.text.count("neither a cross-entropy nor a squared error, so that no head") == 1
    assert not any(record.dropped for record in strategy.history)
    plain = run(fedma(outputs, one_shot=True), outputs, loss, rounds=4)
    assert loss_of(found, outputs, loss) < 1.2 * loss_of(plain, outputs, loss)


def test_what_is_known_of_the_loss_outlives_the_run(tmp_path):
    run(fedma(1, checkpoint_dir=tmp_path), 1, functional.huber_loss, rounds=2)
    strategy = fedma(1, checkpoint_dir=tmp_path, resume=True)
    run(strategy, 1, functional.huber_loss, rounds=3)
    assert head_stages(strategy) == [1]  # of the earlier run


def test_who_asks_for_a_solved_head_gets_no_other():
    with pytest.raises(AggregationError, match=r"the loss is neither.*head=\"trained\""):
        run(fedma(1, head="solved"), 1, functional.huber_loss)
