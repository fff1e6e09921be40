"""The ClientApp."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedma_flwr import fedma_mod, load_model
from personal_norms.task import Net, load_data
from personal_norms.task import test as test_fn
from personal_norms.task import train as train_fn

app = ClientApp(mods=[fedma_mod])


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Train the global model, with this client's batch norms, on this client's digits."""
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
    """Evaluate the global model, with this client's batch norms, on digits of its scanner."""
    model = load_model(Net(), msg)
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    _, dataset = load_data(
        context.node_config["partition-id"], context.node_config["num-partitions"]
    )
    loss, accuracy = test_fn(model, dataset)
    metrics = MetricRecord({"loss": loss, "accuracy": accuracy, "num-examples": len(dataset)})
    return Message(content=RecordDict({"metrics": metrics}), reply_to=msg)
