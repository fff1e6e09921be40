"""Strategies that keep the records of a run in a folder, and make a report of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from fedma_flwr.server.arguments import check_arguments
from fedma_flwr.server.folders import as_folder
from fedma_flwr.server.global_model import GlobalModel
from fedma_flwr.server.history import ExchangeRecord
from fedma_flwr.server.output_folder import OutputFolder
from fedma_flwr.server.resuming import EvaluateFn, ResumableCohort
from fedma_flwr.server.run_settings import run_settings

#: Where a round's figures come from.
TRAINING, CLIENTS, SERVER = "training", "clients", "server"


class RecordedCohort(ResumableCohort):
    """A resumable cohort that may keep records of its run in a folder.

    Parameters
    ----------
    output_dir : str or Path, optional (default: None)
        Folder that gets ``exchanges.jsonl``, ``result.json``, ``settings.json``, the final
        ``model.safetensors`` and, at the end, ``report.html``; what an earlier run has left there
        under these names is removed. None: nothing is written.
    **cohort : Any
        Those of `ResumableCohort` and of `SeededCohort`.

    Attributes
    ----------
    keeps_details : bool
        Whether records get what only a report shows, as those in `output_dir` do.
    """

    keeps_details = False
    _records: OutputFolder | None = None

    def __init__(self, *, output_dir: str | Path | None = None, **cohort: Any) -> None:
        check_arguments({"output_dir": output_dir})
        super().__init__(**cohort)
        self.output_dir = None if output_dir is None else as_folder("output_dir", output_dir)

    def _spill_folder(self) -> Path | None:
        return super()._spill_folder() or self.output_dir

    def _begin(self, initial_arrays: ArrayRecord, timeout: float) -> None:
        super()._begin(initial_arrays, timeout)
        self.history.details = self.keeps_details or self.output_dir is not None
        if self.output_dir is None:
            return
        spec = getattr(getattr(self, "settings", None), "spec", None)
        about = {"strategy": type(self).__name__, "seed": self.seed}
        self._records = OutputFolder(self.output_dir, spec, about, resume=self._done > 0)
        self._records.add_round(0, initial_arrays, self.history)
        self._records.add_settings(run_settings(self, self._num_rounds))
        self.history.on_exchange = self._record

    def _record(self, record: ExchangeRecord) -> None:
        if self._records is not None:
            self._records.add_exchange(record)
        if self.on_exchange is not None:
            self.on_exchange(record)

    def _claims(self, num_rounds: int) -> Iterator[AbstractContextManager[None]]:
        yield from super()._claims(num_rounds)
        if self.output_dir is not None:
            yield OutputFolder(self.output_dir, None, {}).claimed()

    def _start(
        self, grid: Grid, initial_arrays: ArrayRecord, *arguments: Any, **kwargs: Any
    ) -> Result:
        self._records = None
        try:
            result = super()._start(grid, initial_arrays, *arguments, **kwargs)
            if self._records is not None:
                self._records.add_model(result.arrays)
            return result
        finally:  # of a run that fails, too: it says who was dropped, and why
            if self._records is not None:
                self._records.add_report()

    # ------------------------------------------------------------------ rounds

    def _finish(self, server_round: int, metrics: MetricRecord | None, model: GlobalModel) -> None:
        super()._finish(server_round, metrics, model)
        if self._records is not None:
            self._records.add_tensors(server_round, model.handed_out, self.history)
            self._measured(server_round, TRAINING, metrics)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Aggregate the replies in the order of the client keys."""
        metrics = super().aggregate_evaluate(server_round, replies)
        self._measured(server_round, CLIENTS, metrics)
        return metrics

    def _remembering(self, evaluate_fn: EvaluateFn) -> EvaluateFn:
        remembering = super()._remembering(evaluate_fn)

        def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            metrics = remembering(server_round, arrays)
            self._measured(server_round, SERVER, metrics)
            return metrics

        return evaluate

    def _measured(self, server_round: int, where: str, metrics: Mapping[str, Any] | None) -> None:
        if self._records is None or not metrics:
            return
        numbers = {k: v for k, v in metrics.items() if isinstance(v, int | float)}
        self._records.add_metrics(server_round, where, numbers)
