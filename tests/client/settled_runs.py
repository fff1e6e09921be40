"""Runs with every plan of a model whose stages are to leave alone what is settled."""

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch.nn.functional import cross_entropy

from fedma_flwr import FedMA, Stage, fedma_mod, load_model
from fedma_flwr.testing import InProcessGrid
from tests.toy import data, fit

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
