"""Habits of advanced-pytorch: a strategy whose `start` is its own, a head that clients restore."""

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg, Result
from torch import nn

from tests.examples.miniatures.digits import batches, client_digits, held_out_digits

app = ClientApp()
server = ServerApp()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, 2)
        self.fc1 = nn.Linear(288, 32)
        self.fc2 = nn.Linear(32, 10)

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(torch.relu(self.conv(x)).flatten(1))))


def save_layer(model, context):
    """Keep the classifier for the next evaluation."""
    context.state["fc2"] = ArrayRecord(model.fc2.state_dict())


@app.train()
def train(msg, context):
    net = Net()
    net.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    dataset = client_digits(context.node_config["partition-id"], 4)
    optimizer = torch.optim.SGD(net.parameters(), lr=msg.content["config"]["lr"])
    for images, labels in batches(dataset):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
    save_layer(net, context)
    metrics = MetricRecord({"num-examples": len(dataset)})
    content = RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=msg)


class CustomStrategy(FedAvg):
    """Lowers the rate every round, and keeps the best model, in a loop of its own."""

    def configure_train(self, server_round, arrays, config, grid):
        config["lr"] *= 0.95
        return super().configure_train(server_round, arrays, config, grid)

    def start(self, grid, initial_arrays, num_rounds=3, train_config=None, evaluate_fn=None):
        best, arrays, result = -1.0, initial_arrays, Result()
        for current in range(1, num_rounds + 1):
            replies = grid.send_and_receive(
                messages=self.configure_train(current, arrays, train_config, grid), timeout=600
            )
            new, metrics = self.aggregate_train(current, replies)
            arrays = arrays if new is None else new
            if metrics is not None:
                result.train_metrics_clientapp[current] = metrics
            score = evaluate_fn(current, arrays)["score"]
            if score > best:
                best, result.arrays = score, arrays
        return result


@server.main()
def main(grid, context):
    net = Net()
    global_evaluate(0, ArrayRecord(net.state_dict()))
    strategy = CustomStrategy(fraction_evaluate=0.0)
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(net.state_dict()),
        num_rounds=context.run_config["num-server-rounds"],
        train_config=ConfigRecord({"lr": context.run_config["lr"]}),
        evaluate_fn=global_evaluate,
    )


def global_evaluate(server_round, arrays):
    net = Net()
    net.load_state_dict(arrays.to_torch_state_dict())
    images, labels = held_out_digits()
    return MetricRecord({"score": (net(images).argmax(1) == labels).float().mean().item()})
