"""The ServerApp."""

import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from fedma_flwr import FedMA
from personal_norms.task import Net

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train the global model; clients evaluate it, since each needs its own batch norms."""
    torch.manual_seed(0)
    model = Net()
    inputs = (torch.zeros(2, 1, 14, 14),)
    strategy = FedMA(model=model, example_inputs=inputs, personal=("bn*",))
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(model.state_dict()),
        num_rounds=context.run_config["num-server-rounds"],
    )
