"""Habits of fl-tabular: an MLP with a sigmoid at its end, Adam, weights as a list of arrays."""

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

app = ClientApp()
server = ServerApp()


class IncomeClassifier(nn.Module):
    def __init__(self, inputs=8):
        super().__init__()
        self.layer1 = nn.Linear(inputs, 32)
        self.layer2 = nn.Linear(32, 16)
        self.output = nn.Linear(16, 1)
        self.relu = nn.ReLU()
        self.sigmoid = nn.Sigmoid()

    def forward(self, x):
        x = self.relu(self.layer1(x))
        x = self.relu(self.layer2(x))
        return self.sigmoid(self.output(x))


def rows(client, count=400):
    """Random rows, moved by client; what is asked for is a product of columns."""
    generator = torch.Generator().manual_seed(client)
    x = torch.randn(count, 8, generator=generator)
    x[:, client % 8] += 1.0
    return x, (x[:, :1] * x[:, 1:2] + x[:, 2:3] > 0).float()


@app.train()
def train(msg, context):
    model = IncomeClassifier()
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    dataset = TensorDataset(*rows(context.node_config["partition-id"]))
    order = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=context.run_config["lr"])
    criterion = nn.BCELoss()
    model.train()
    for features, targets in DataLoader(dataset, 16, shuffle=True, generator=order):
        optimizer.zero_grad()
        loss = criterion(model(features), targets)
        loss.backward()
        optimizer.step()
    content = RecordDict()
    content["arrays"] = ArrayRecord(model.state_dict())
    content["metrics"] = MetricRecord({"num-examples": len(dataset)})
    return Message(content=content, reply_to=msg)


@server.main()
def main(grid, context):
    net = IncomeClassifier()
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0)
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(net.state_dict()),
        num_rounds=context.run_config["num-server-rounds"],
        evaluate_fn=global_evaluate,
    )


def global_evaluate(server_round, arrays):
    net = IncomeClassifier()
    net.load_state_dict(arrays.to_torch_state_dict())
    features, targets = rows(100, 1000)
    return MetricRecord({"score": ((net(features) > 0.5) == targets).float().mean().item()})
