"""Habits of federated-vae: no classes and no head, noise in forward, a loss of its own."""

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from torch import nn
from torch.nn import functional

from tests.examples.miniatures.digits import batches, client_digits, held_out_digits

app = ClientApp()
server = ServerApp()


class Flatten(nn.Module):
    def forward(self, x):
        return x.view(x.size(0), -1)


class UnFlatten(nn.Module):
    def forward(self, x):
        return x.view(-1, 8, 6, 6)


class Net(nn.Module):
    def __init__(self, z_dim=10):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 8, 4, stride=2), nn.ReLU(), Flatten())
        self.fc1 = nn.Linear(288, z_dim)
        self.fc2 = nn.Linear(288, z_dim)
        self.fc3 = nn.Linear(z_dim, 288)
        self.decoder = nn.Sequential(UnFlatten(), nn.ConvTranspose2d(8, 1, 4, 2), nn.Sigmoid())

    def reparametrize(self, h):
        mu, logvar = self.fc1(h), self.fc2(h)
        z = mu + logvar.mul(0.5).exp() * torch.randn_like(mu)
        return z, mu, logvar

    def forward(self, x):
        z, mu, logvar = self.reparametrize(self.encoder(x))
        return self.decoder(self.fc3(z)), mu, logvar


def vae_loss(net, images):
    recon, mu, logvar = net(images)
    error = functional.mse_loss(recon, images, reduction="sum") / len(images)
    return error - 0.05 * (1 + logvar - mu.pow(2) - logvar.exp()).sum(1).mean()


@app.train()
def train(msg, context):
    net = Net()
    net.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    torch.manual_seed(0)  # of the noise
    dataset = client_digits(context.node_config["partition-id"], 4)
    optimizer = torch.optim.SGD(net.parameters(), lr=context.run_config["lr"], momentum=0.9)
    for images, _ in batches(dataset):
        optimizer.zero_grad()
        vae_loss(net, images).backward()
        optimizer.step()
    metrics = MetricRecord({"num-examples": len(dataset)})
    content = RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=msg)


@server.main()
def main(grid, context):
    net = Net()
    strategy = FedAvg(fraction_evaluate=0.0)
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(net.state_dict()),
        num_rounds=context.run_config["num-server-rounds"],
        evaluate_fn=global_evaluate,
    )


def global_evaluate(server_round, arrays):
    net = Net()
    net.load_state_dict(arrays.to_torch_state_dict())
    torch.manual_seed(0)
    images, _ = held_out_digits()
    return MetricRecord({"score": -vae_loss(net, images).item()})
