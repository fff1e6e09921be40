"""FedMA from end to end on other kinds of networks: each becomes better than its start."""

import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedma_flwr import FedMA, fedma_mod, load_model
from fedma_flwr.testing import InProcessGrid
from tests.architectures.more_networks import KINDS

CLIENTS, EXAMPLES, EPOCHS = 3, 60, 6


def made(kind):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind.make()


def make_app(kind):
    app = ClientApp(mods=[fedma_mod])

    @app.train()
    def train(message, context):
        client = context.node_config["partition-id"]
        inputs, targets = kind.draw(EXAMPLES, torch.Generator().manual_seed(client))
        shared = [tensor.shape[0] != len(targets) for tensor in inputs]
        model = load_model(made(kind), message).train()
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(parameters or model.parameters(), lr=0.01)
        generator = torch.Generator().manual_seed(client)
        for _ in range(EPOCHS):
            for at in torch.randperm(len(targets), generator=generator).split(20):
                own = [x if alike else x[at] for x, alike in zip(inputs, shared, strict=True)]
                optimizer.zero_grad()
                loss = kind.loss(model(*own), targets[at])
                if loss.requires_grad:
                    loss.backward()
                    optimizer.step()
        metrics = MetricRecord({"num-examples": len(targets)})
        records = {"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}
        return Message(RecordDict(records), reply_to=message)

    return app


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_becomes_better_than_its_start(name):
    kind, losses = KINDS[name], []
    if name == "bert":
        pytest.importorskip("transformers")
    inputs, targets = kind.draw(200, torch.Generator().manual_seed(99))

    def evaluate(_, arrays):
        model = load_model(made(kind), arrays).eval()
        with torch.no_grad():
            losses.append(float(kind.loss(model(*inputs), targets)))

    example, _ = kind.draw(2, torch.Generator().manual_seed(1))
    strategy = FedMA(
        model=made(kind), example_inputs=example, fraction_evaluate=0.0, head="trained"
    )
    strategy.start(
        InProcessGrid(make_app(kind), CLIENTS),
        ArrayRecord(made(kind).state_dict()),
        num_rounds=2,
        evaluate_fn=evaluate,
    )
    assert strategy.settings.spec.groups
    assert not [record.dropped for record in strategy.history if record.dropped]
    assert losses[-1] < kind.least * losses[0], losses
