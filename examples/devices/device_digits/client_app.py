"""The ClientApp, which is the same on all devices."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from device_digits.task import Net, load_data
from device_digits.task import test as test_fn
from device_digits.task import train as train_fn
from fedma_flwr import fedma_mod, load_model

app = ClientApp(mods=[fedma_mod])


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Train this device's part of the model on its digits."""
    model = load_model(Net(), msg)
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    dataset, _ = load_data(
        context.node_config["partition-id"], context.node_config["num-partitions"]
    )
    loss = train_fn(model, dataset, context.run_config["local-epochs"], context.run_config["lr"])
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(dataset)})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    """Evaluate the model that this device runs on digits that nobody trains on."""
    model = load_model(Net(), msg)
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    _, dataset = load_data(
        context.node_config["partition-id"], context.node_config["num-partitions"]
    )
    loss, accuracy = test_fn(model, dataset)
    channels = model.conv1.out_channels
    metrics = {"loss": loss, "accuracy": accuracy, "channels": channels}
    content = RecordDict({"metrics": MetricRecord({**metrics, "num-examples": len(dataset)})})
    return Message(content=content, reply_to=msg)
