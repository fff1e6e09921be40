"""The ClientApp."""

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedma_flwr import Stage, class_counts, fedma_mod, load_model
from tiny.hostile import lie
from tiny.task import CLASSES, client_data, make_net, train

app = ClientApp(mods=[lie, fedma_mod])


@app.train()
def fit(message, context):
    """Train what is not settled on this client's points."""
    inputs, client = context.run_config["inputs"], int(context.node_config["partition-id"])
    data, stage = client_data(inputs, client), Stage.from_message(message)
    net = load_model(make_net(inputs), message)
    epochs = message.content["config"]["epochs"]
    train(net, data, epochs, seed=1000 * client + 10 * stage.round + stage.index)
    metrics = MetricRecord(
        {
            "num-examples": len(data),
            "class-counts": class_counts(data.tensors[1], CLASSES),
            "epochs": epochs,
        }
    )
    content = RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics})
    return Message(content, reply_to=message)
