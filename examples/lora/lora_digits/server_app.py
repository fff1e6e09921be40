"""The ServerApp."""

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from fedma_flwr import FedMA, load_model
from lora_digits.task import load_test_data, make_model, shared, test

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train the global adapters and the classifier."""
    torch.manual_seed(0)
    model = make_model()
    strategy = FedMA(model=model, example_inputs=(torch.zeros(2, 196),))
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(shared(model)),
        num_rounds=context.run_config["num-server-rounds"],
        evaluate_fn=global_evaluate,
    )


def global_evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Evaluate the global adapters on digits that nobody trains on."""
    model = load_model(make_model(), arrays, strict=False)
    model.load_state_dict(arrays.to_torch_state_dict(), strict=False)
    loss, accuracy = test(model, load_test_data())
    return MetricRecord({"accuracy": accuracy, "loss": loss})
