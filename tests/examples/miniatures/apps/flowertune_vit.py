"""Habits of flowertune-vit: a vision transformer whose head alone is trained, and crosses."""

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from torch import nn
from torchvision.models import VisionTransformer

from tests.examples.miniatures.digits import batches, client_digits, held_out_digits

app = ClientApp()
server = ServerApp()


def get_model():
    """A body that stands for a pretrained one: the same numbers everywhere, frozen."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VisionTransformer(14, 7, 1, 2, 32, 64, num_classes=10)
    model.requires_grad_(False)
    model.heads.requires_grad_(True)
    nn.init.normal_(model.heads.head.weight, std=0.1)
    return model


def pictures(images):
    return images.expand(-1, 3, -1, -1)


@app.train()
def train(msg, context):
    model = get_model()
    finetune_layers = model.heads
    finetune_layers.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    dataset = client_digits(context.node_config["partition-id"], 4)
    optimizer = torch.optim.Adam(finetune_layers.parameters(), lr=context.run_config["lr"])
    for images, labels in batches(dataset):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(pictures(images)), labels).backward()
        optimizer.step()
    metrics = MetricRecord({"num-examples": len(dataset)})
    content = RecordDict({"arrays": ArrayRecord(finetune_layers.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=msg)


@server.main()
def main(grid, context):
    finetune_layers = get_model().heads
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0)
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(finetune_layers.state_dict()),
        num_rounds=context.run_config["num-server-rounds"],
        evaluate_fn=global_evaluate,
    )


def global_evaluate(server_round, arrays):
    model = get_model().eval()
    finetune_layers = model.heads
    finetune_layers.load_state_dict(arrays.to_torch_state_dict(), strict=True)
    images, labels = held_out_digits()
    hits = model(pictures(images)).argmax(1) == labels
    return MetricRecord({"score": hits.float().mean().item()})
