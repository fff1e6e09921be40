"""Habits of custom-mods: mods before and behind, which read what FedAvg always sends."""

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import arrays_size_mod, message_size_mod
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from torch import nn

from tests.examples.miniatures.digits import batches, client_digits, held_out_digits

ROUNDS_SEEN = []


def log_rounds_mod(msg, context, call_next):
    """As one that writes to TensorBoard: it reads the round, and the reply's metrics."""
    server_round = int(msg.content["config"]["server-round"])
    reply = call_next(msg, context)
    if reply.has_content() and msg.metadata.message_type == "train":
        examples = reply.content["metrics"].get("num-examples", 0)
        ROUNDS_SEEN.append((server_round, examples))
    return reply


app = ClientApp(mods=[log_rounds_mod, message_size_mod, arrays_size_mod])
server = ServerApp()


def make_net():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(288, 32), nn.ReLU(),
        nn.Linear(32, 10),
    )  # fmt: skip


@app.train()
def train(msg, context):
    net = make_net()
    net.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    dataset = client_digits(context.node_config["partition-id"], 4)
    optimizer = torch.optim.SGD(net.parameters(), lr=msg.content["config"]["lr"])
    for images, labels in batches(dataset):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
    content = RecordDict(
        {
            "arrays": ArrayRecord(net.state_dict()),
            "metrics": MetricRecord({"num-examples": len(dataset)}),
        }
    )
    return Message(content=content, reply_to=msg)


@server.main()
def main(grid, context):
    net = make_net()
    strategy = FedAvg(fraction_evaluate=0.0)
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(net.state_dict()),
        num_rounds=context.run_config["num-server-rounds"],
        train_config=ConfigRecord({"lr": context.run_config["lr"]}),
        evaluate_fn=global_evaluate,
    )


def global_evaluate(server_round, arrays):
    net = make_net()
    net.load_state_dict(arrays.to_torch_state_dict())
    images, labels = held_out_digits()
    return MetricRecord({"score": (net(images).argmax(1) == labels).float().mean().item()})
