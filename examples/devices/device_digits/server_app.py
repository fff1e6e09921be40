"""The ServerApp."""

import torch
from flwr.app import ArrayRecord, Context, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp

from device_digits.task import Net
from fedma_flwr import FedMA

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train the global model; every device evaluates the part of it that it runs."""
    torch.manual_seed(0)
    model = Net()
    by_kind = {"evaluate_metrics_aggr_fn": accuracy_by_kind}
    widths = dict(enumerate(map(float, context.run_config["simulated-widths"].split())))
    by_key = {str(partition): width for partition, width in widths.items()}
    inputs = (torch.zeros(2, 1, 14, 14),)
    strategy = FedMA(model=model, example_inputs=inputs, client_widths=by_key, **by_kind)
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(model.state_dict()),
        num_rounds=context.run_config["num-server-rounds"],
    )


def accuracy_by_kind(replies: list[RecordDict], weighting: str) -> MetricRecord:
    """Return the mean accuracy, and that of the devices of each width."""
    metrics = [reply["metrics"] for reply in replies]
    kinds = {f"accuracy-{m['channels']}-channels": m["channels"] for m in metrics}
    found = {"accuracy": _mean(metrics, weighting)}
    for name, channels in sorted(kinds.items()):
        found[name] = _mean([m for m in metrics if m["channels"] == channels], weighting)
    return MetricRecord(found)


def _mean(metrics: list[MetricRecord], weighting: str) -> float:
    total = sum(m[weighting] for m in metrics)
    return sum(m[weighting] * m["accuracy"] for m in metrics) / total
