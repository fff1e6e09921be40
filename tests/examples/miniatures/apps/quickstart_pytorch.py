"""Habits of quickstart-pytorch: shapes are hard-coded, the rate is in the train config."""

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from torch import nn
from torch.nn import functional

from tests.examples.miniatures.digits import batches, client_digits, held_out_digits

app = ClientApp()
server = ServerApp()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 3)
        self.fc1 = nn.Linear(16 * 2 * 2, 60)
        self.fc2 = nn.Linear(60, 42)
        self.fc3 = nn.Linear(42, 10)

    def forward(self, x):
        x = self.pool(functional.relu(self.conv1(x)))
        x = self.pool(functional.relu(self.conv2(x)))
        x = x.view(-1, 16 * 2 * 2)
        x = functional.relu(self.fc1(x))
        return self.fc3(functional.relu(self.fc2(x)))


@app.train()
def train(msg, context):
    model = Net()
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    dataset = client_digits(context.node_config["partition-id"], 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=msg.content["config"]["lr"], momentum=0.9)
    total = 0.0
    for _ in range(context.run_config["local-epochs"]):
        for images, labels in batches(dataset):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
    metrics = MetricRecord({"train_loss": total / len(dataset), "num-examples": len(dataset)})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=msg)


@app.evaluate()
def evaluate(msg, context):
    model = Net()
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    images, labels = client_digits(context.node_config["partition-id"], 4).tensors
    accuracy = (model(images).argmax(1) == labels).float().mean().item()
    metrics = MetricRecord({"eval_acc": accuracy, "num-examples": len(labels)})
    return Message(content=RecordDict({"metrics": metrics}), reply_to=msg)


@server.main()
def main(grid, context):
    global_model = Net()
    strategy = FedAvg(fraction_evaluate=0.5)
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(global_model.state_dict()),
        train_config=ConfigRecord({"lr": context.run_config["lr"]}),
        num_rounds=context.run_config["num-server-rounds"],
        evaluate_fn=global_evaluate,
    )


def global_evaluate(server_round, arrays):
    model = Net()
    model.load_state_dict(arrays.to_torch_state_dict())
    images, labels = held_out_digits()
    return MetricRecord({"score": (model(images).argmax(1) == labels).float().mean().item()})
