"""The ServerApp."""

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from fedma_flwr import FedMA, load_model
from lightning_digits.task import LitDigits, load_test_data, make_trainer

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train the global model."""
    torch.manual_seed(0)
    model = LitDigits()
    strategy = FedMA(model=model, example_inputs=(torch.zeros(2, 1, 28, 28),))
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(model.state_dict()),
        num_rounds=context.run_config["num-server-rounds"],
        evaluate_fn=global_evaluate,
    )


def global_evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Evaluate the global model on digits that nobody trains on."""
    model = load_model(LitDigits(), arrays)
    model.load_state_dict(arrays.to_torch_state_dict())
    (results,) = make_trainer().test(model, load_test_data(), verbose=False)
    return MetricRecord({"accuracy": results["test_accuracy"], "loss": results["test_loss"]})
