"""`on_exchange` for TensorBoard, MLflow and Weights & Biases: figures after every exchange.

None of the three is imported here, nor needed: you hand over what you log with.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from logging import WARNING
from typing import Any

from flwr.supercore import log

from fedma_flwr.server.history import ExchangeRecord

OnExchange = Callable[[ExchangeRecord], None]
_COUNTERS = (
    "round",
    "stage",
    "cohort",
    "answered",
    "bytes_down",
    "bytes_up",
    "epochs",
    "seconds_waiting",
    "seconds_matching",
    "growth",
)


def figures(record: ExchangeRecord) -> dict[str, float]:
    """The numbers of an exchange, by names that all three loggers take.

    Parameters
    ----------
    record : ExchangeRecord
        What `on_exchange` is given.

    Returns
    -------
    dict of str to float
        Counters, ``dropped``, ``width/GROUP``, ``similarity/GROUP`` (the median) and
        ``metric/NAME``. What a name may not have becomes an underscore.
    """
    found: dict[str, Any] = {name: getattr(record, name) for name in _COUNTERS}
    found["dropped"] = len(record.dropped)
    found |= {f"width/{group}": width for group, width in record.widths.items()}
    found |= {f"similarity/{group}": q[2] for group, q in record.similarity.items() if q}
    found |= {f"metric/{name}": value for name, value in record.metrics.items()}
    numbers = {k: float(v) for k, v in found.items() if isinstance(v, int | float)}
    return {re.sub(r"[^\w./ -]", "_", k): v for k, v in numbers.items() if math.isfinite(v)}


def to_tensorboard(writer: Any) -> OnExchange:
    """Log to TensorBoard: ``FedMA(on_exchange=to_tensorboard(SummaryWriter(folder)))``.

    Parameters
    ----------
    writer : SummaryWriter
        Of ``torch.utils.tensorboard``, or anything with ``add_scalar(name, value, step)``.
    """

    def write(values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(f"fedma/{name}", value, step)
        writer.flush()

    return _guarded(write)


def to_mlflow(mlflow: Any) -> OnExchange:
    """Log to the active MLflow run: ``FedMA(on_exchange=to_mlflow(mlflow))``.

    Parameters
    ----------
    mlflow : module
        ``mlflow``, or anything with ``log_metrics(values, step=...)``.
    """
    return _guarded(lambda values, step: mlflow.log_metrics(dict(values), step=step))


def to_wandb(run: Any) -> OnExchange:
    """Log to Weights & Biases: ``FedMA(on_exchange=to_wandb(wandb.init(...)))``.

    Parameters
    ----------
    run : wandb.Run
        Or anything with ``log(values, step=...)``.
    """
    return _guarded(lambda values, step: run.log(dict(values), step=step))


def _guarded(write: Callable[[Mapping[str, float], int], None]) -> OnExchange:
    """Number the exchanges from 1; a logger that fails costs a warning, not the run."""
    step = 0

    def on_exchange(record: ExchangeRecord) -> None:
        nonlocal step
        step += 1
        try:
            write(figures(record), step)
        except Exception as error:  # whatever a logger raises, its server's absence included
            log(WARNING, "Exchange %s was not logged: %s: %s", step, type(error).__name__, error)

    return on_exchange
