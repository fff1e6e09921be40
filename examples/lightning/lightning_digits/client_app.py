"""The ClientApp."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedma_flwr import fedma_mod, load_model
from lightning_digits.task import LitDigits, load_data, make_trainer

app = ClientApp(mods=[fedma_mod])


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Train the global model on this client's digits."""
    model = load_model(LitDigits(context.run_config["lr"]), msg)
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    loader = load_data(context.node_config["partition-id"], context.node_config["num-partitions"])
    trainer = make_trainer(context.run_config["local-epochs"])
    trainer.fit(model, loader)
    loss = trainer.callback_metrics["train_loss"].item()
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(loader.dataset)})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    """Evaluate the global model on this client's digits."""
    model = load_model(LitDigits(), msg)
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    loader = load_data(context.node_config["partition-id"], context.node_config["num-partitions"])
    (results,) = make_trainer().test(model, loader, verbose=False)
    metrics = MetricRecord({**results, "num-examples": len(loader.dataset)})
    return Message(content=RecordDict({"metrics": metrics}), reply_to=msg)
