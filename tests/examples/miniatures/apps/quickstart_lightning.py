"""Habits of quickstart-pytorch-lightning: an autoencoder whose `forward` is its encoder alone."""

import pytorch_lightning as pl
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


class LitAutoEncoder(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(196, 32), nn.ReLU(), nn.Linear(32, 8))
        self.decoder = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 196))

    def forward(self, x):
        return self.encoder(x)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)

    def training_step(self, train_batch, batch_idx):
        x, _ = train_batch
        x = x.view(x.size(0), -1)
        loss = functional.mse_loss(self.decoder(self.encoder(x)), x)
        self.log("train_loss", loss)
        return loss


@app.train()
def train(msg, context):
    model = LitAutoEncoder()
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    loader = batches(client_digits(context.node_config["partition-id"], 4))
    trainer = pl.Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model=model, train_dataloaders=loader)
    loss = trainer.callback_metrics["train_loss"].item()
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(loader.dataset)})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=msg)


@server.main()
def main(grid, context):
    model = LitAutoEncoder()
    strategy = FedAvg(fraction_evaluate=0.0)
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(model.state_dict()),
        num_rounds=context.run_config["num-server-rounds"],
        evaluate_fn=global_evaluate,
    )


def global_evaluate(server_round, arrays):
    model = LitAutoEncoder()
    model.load_state_dict(arrays.to_torch_state_dict())
    x = held_out_digits()[0].flatten(1)
    return MetricRecord({"score": -functional.mse_loss(model.decoder(model(x)), x).item()})
