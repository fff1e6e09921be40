"""FedAvg and FedProx with the client of FedMA: they send and average as their papers say."""

import pytest
import torch

from fedma_flwr import FedAvg, FedProx, load_model, proximal_term
from tests.server.toy_runs import run
from tests.toy import CLIENTS, SPEC, LayerwiseFedMA, Net, fit, make_app, reply


def test_one_client_app_serves_all_three_strategies():
    app = make_app()
    for strategy in (LayerwiseFedMA(spec=SPEC), FedAvg(), FedProx(proximal_mu=0.1)):
        result = run(strategy, app, rounds=2)
        assert len(result.evaluate_metrics_clientapp) == 2


def test_fedprox_sends_mu_and_its_term_is_half_mu_times_the_squared_distance():
    seen = []

    def train(message, context, client):
        seen.append(message.content["config"]["proximal-mu"])
        model = load_model(Net(), message)
        return reply(message, model, client)

    run(FedProx(proximal_mu=0.25), make_app(train))
    assert seen == [0.25] * CLIENTS

    model = torch.nn.Linear(2, 1)
    reference = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0]]))
        model.bias.copy_(torch.tensor([3.0]))
    term = proximal_term(model, 0.5, reference)
    assert term.item() == pytest.approx(0.5 / 2 * (1 + 4 + 9))
    term.backward()
    torch.testing.assert_close(model.weight.grad, 0.5 * model.weight.detach())


def test_fedavg_is_flowers_average():
    strategy = FedAvg()
    uploads = []

    def train(message, context, client):
        model = load_model(Net(), message)
        fit(model, client)
        uploads.append((model.state_dict(), 10 * (client + 1)))
        return reply(message, model, client, **{"num-examples": 10 * (client + 1)})

    result = run(strategy, make_app(train))
    total = sum(weight for _, weight in uploads)
    mean = sum(state["a.weight"] * (weight / total) for state, weight in uploads)
    torch.testing.assert_close(torch.from_numpy(result.arrays["a.weight"].numpy()), mean)
