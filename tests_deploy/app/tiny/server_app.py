"""The ServerApp: FedMA, with the shipped app's records of what it does."""

from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import ServerApp

from fedma_flwr import FedMA, load_model
from fedma_flwr.server.output_folder import OutputFolder
from tiny.task import evaluate, make_net

app = ServerApp()


@app.main()
def main(grid, context):
    """Run FedMA as the run config says."""
    config = context.run_config
    inputs, folder = config["inputs"], config["checkpoint-dir"]
    net = make_net(inputs)
    output_folder = OutputFolder(Path(config["output-dir"]), None, {}, resume=config["resume"])
    strategy = FedMA(
        model=net,
        example_inputs=(torch.zeros(2, inputs),),
        groups_per_stage="all" if config["groups-per-stage"] == "all" else 1,
        head="trained",
        fraction_evaluate=0.0,
        min_train_nodes=config["min-train-nodes"],
        min_available_nodes=config["min-available-nodes"],
        node_timeout=config["node-timeout"],
        stage_timeout=config["stage-timeout"],
        retrain_config={"epochs": min(4, config["epochs"])},
        head_config={"epochs": min(4, config["epochs"])},
        on_exchange=output_folder.add_exchange,
        checkpoint_dir=folder or None,
        resume=config["resume"],
    )

    def evaluate_fn(server_round, arrays):
        loss, accuracy = evaluate(load_model(make_net(inputs), arrays), inputs)
        output_folder.add_round(
            server_round, arrays, strategy.history, loss=loss, accuracy=accuracy
        )
        return MetricRecord({"loss": loss, "accuracy": accuracy})

    result = strategy.start(
        grid,
        ArrayRecord(net.state_dict()),
        num_rounds=config["num-server-rounds"],
        train_config=ConfigRecord({"epochs": config["epochs"]}),
        evaluate_fn=evaluate_fn,
    )
    output_folder.add_model(result.arrays)
