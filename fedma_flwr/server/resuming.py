"""Strategies that write a checkpoint after every round, and go on from the last one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from logging import INFO, WARNING
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result
from flwr.supercore import log

from fedma_flwr import protocol
from fedma_flwr.server.arguments import check_resuming
from fedma_flwr.server.checkpoints import Checkpoint, CheckpointError, CheckpointFolder, describe
from fedma_flwr.server.cohort import SeededCohort
from fedma_flwr.server.folders import as_folder, claimed
from fedma_flwr.server.global_model import GlobalModel
from fedma_flwr.server.hello import HelloLike
from fedma_flwr.server.matchings_folder import MatchingsFolder
from fedma_flwr.server.pulling import guarded

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


class ResumableCohort(SeededCohort):
    """A seeded cohort whose run can be stopped and gone on with.

    Flower's ``start()`` always counts from round 1. A resumed run therefore passes through the
    rounds that are done without sending anything: they give what the checkpoint says they gave,
    so that round numbers, cohorts, history and ``Result`` are those of a run that never stopped.
    Of the last of them the evaluation is done again, since a checkpoint is written before it.

    Clients need not have kept anything: the first message of a resumed run is a full-state
    message, which says bit for bit what they held. Only what a train function itself keeps in
    ``context.state`` is beyond a checkpoint.

    Parameters
    ----------
    checkpoint_dir : str or Path, optional (default: None)
        Folder that gets a checkpoint after every round; the last two are kept. None: no
        checkpoints. A folder that has some already is refused, unless `resume` is true; so is one
        that another run is using. A round whose checkpoint cannot be written costs a warning.
    resume : bool (default: False)
        Go on from the newest usable checkpoint in `checkpoint_dir`; from the beginning if there
        is none at all. Needs the same strategy, model, spec, seed and settings; timeouts, the
        number of rounds, the evaluation's options and the train config may differ.
    **cohort : Any
        Those of `SeededCohort`.
    """

    def __init__(
        self, *, checkpoint_dir: str | Path | None = None, resume: bool = False, **cohort: Any
    ) -> None:
        check_resuming(checkpoint_dir, resume)
        super().__init__(**cohort)
        self.checkpoint_dir = None
        if checkpoint_dir is not None:
            self.checkpoint_dir = as_folder("checkpoint_dir", checkpoint_dir)
        self.resume = resume
        self._folder: CheckpointFolder | None = None
        self._matchings: MatchingsFolder | None = None
        self._progress = Checkpoint(0, GlobalModel({}))
        self._done = 0  # rounds that an earlier run has done
        self._num_rounds = 0
        self._given = ArrayRecord()  # the arrays that the last round has returned

    def _begin(self, initial_arrays: ArrayRecord, timeout: float) -> None:
        super()._begin(initial_arrays, timeout)
        self.history.progress.rounds = self._num_rounds
        self._folder = None
        self._progress = Checkpoint(0, GlobalModel(protocol.to_tensors(initial_arrays)))
        self._done = 0
        self._given = initial_arrays
        self._open(initial_arrays)

    def _spill_folder(self) -> Path | None:
        return super()._spill_folder() or self.checkpoint_dir

    def _adopt(self, arrays: ArrayRecord) -> None:
        """Go on from other arrays than the last round's, if a subclass has changed them.

        Raises
        ------
        SpecError or ValueError
            If they are not of the same names and shapes.
        """
        if arrays is not self._given and _data(arrays) != _data(self._given):
            self._model = self._model.with_tensors(protocol.to_tensors(arrays))
        self._given = arrays

    @property
    def _model(self) -> GlobalModel:
        return self._progress.model

    @_model.setter
    def _model(self, model: GlobalModel) -> None:
        self._progress = replace(self._progress, model=model)

    def _fingerprint(self) -> dict[str, str]:
        """What must be the same in a resumed run, by name."""
        return {
            "strategy": type(self).__name__,
            "seed": str(self.seed),
            "fraction_train": str(self.fraction_train),
            "min_train_nodes": str(self.min_train_nodes),
            "weighted_by_key": self.weighted_by_key,
        }

    # ------------------------------------------------------------------ life cycle

    def start(  # noqa: PLR0917 (Flower's arguments)
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
        **kwargs: Any,
    ) -> Result:
        """Run the strategy from the beginning or from a checkpoint; see Flower's ``start``.

        Raises
        ------
        CheckpointError
            If there are checkpoints, but `resume` is false or none of them can be used.
        ValueError
            If `num_rounds` is less than the rounds that are done, or if a folder cannot be
            written to or is another run's.
        """
        self._num_rounds = num_rounds
        with ExitStack() as claims:
            for claim in self._claims(num_rounds):
                claims.enter_context(claim)
            return self._start(
                grid,
                initial_arrays,
                num_rounds,
                timeout,
                train_config,
                evaluate_config,
                evaluate_fn,
                **kwargs,
            )

    def _claims(self, num_rounds: int) -> Iterator[AbstractContextManager[None]]:
        """Of the folders that the run is going to write to."""
        if self.checkpoint_dir is not None:
            yield claimed("checkpoint_dir", self.checkpoint_dir, ("round-*.partial",))
        if self._matchings is not None and self._matchings.lacks(num_rounds):
            yield claimed("matchings", self._matchings.path, ("round-*.partial",))

    def _start(  # noqa: PLR0917 (Flower's arguments)
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int,
        timeout: float,
        train_config: ConfigRecord | None,
        evaluate_config: ConfigRecord | None,
        evaluate_fn: EvaluateFn | None,
        **kwargs: Any,
    ) -> Result:
        self._begin(initial_arrays, timeout)
        if num_rounds < self._done:
            raise ValueError(
                f"num_rounds was {num_rounds}, but the checkpoint in {self.checkpoint_dir} has "
                f"{self._done} rounds: num_rounds counts those that are done too."
            )
        remembering = None if evaluate_fn is None else self._remembering(evaluate_fn)
        return super().start(
            guarded(grid),
            initial_arrays,
            num_rounds,
            timeout,
            train_config,
            evaluate_config,
            remembering,
            **kwargs,
        )

    def _open(self, initial_arrays: ArrayRecord) -> None:
        if self.checkpoint_dir is None:
            return
        model = describe(protocol.to_tensors(initial_arrays))
        self._folder = CheckpointFolder(
            self.checkpoint_dir, {**self._fingerprint(), "model": model}
        )
        if not self.resume:
            if self._folder.files():
                raise CheckpointError(
                    f"checkpoint_dir {self.checkpoint_dir} has the checkpoints of an earlier run: "
                    "go on from them with resume=True (`resume = true` in the run config), or "
                    "give another folder."
                )
            return
        checkpoint = self._folder.latest()
        if checkpoint is None:
            log(INFO, "No checkpoint in %s: beginning with round 1.", self.checkpoint_dir)
            return
        self._done, self._progress = checkpoint.round, checkpoint
        self.history.exchanges = checkpoint.exchanges
        self.history.given_up = checkpoint.given_up

    def _remembering(self, evaluate_fn: EvaluateFn) -> EvaluateFn:
        """An ``evaluate_fn`` that is not asked again about rounds that were evaluated."""

        def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            if 0 < server_round < self._done:
                return self._progress.server_metrics.get(server_round)
            metrics = evaluate_fn(server_round, arrays)
            if metrics is not None:
                self._progress.server_metrics[server_round] = metrics
            return metrics

        return evaluate

    # ------------------------------------------------------------------ rounds

    def _sample(
        self, grid: Grid, server_round: int, stream: int, like: HelloLike | None = None
    ) -> list[int]:
        nodes = super()._sample(grid, server_round, stream, like)
        if nodes and self._matchings is not None and not self._matchings.begun:
            keys = [self.client_key(node) for node in self._online]
            self._matchings.check_clients(range(server_round, self._num_rounds + 1), keys)
        return nodes

    def _restored(self, server_round: int) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """What a round that is done has given; the arrays are those after the last of them."""
        last = server_round == self._done
        arrays = protocol.to_arrays(self._model.handed_out) if last else None
        self._given = arrays or self._given
        return arrays, self._progress.train_metrics.get(server_round)

    def _finish(self, server_round: int, metrics: MetricRecord | None, model: GlobalModel) -> None:
        """Take note of a round's outcome, and write the checkpoint if one is wanted."""
        if metrics is not None:
            self._progress.train_metrics[server_round] = metrics
        self._progress = replace(
            self._progress,
            round=server_round,
            model=model,
            exchanges=self.history.exchanges,
            given_up=self.history.given_up,
        )
        if self._folder is None:
            return
        try:
            self._folder.save(self._progress)
        except CheckpointError as error:
            log(WARNING, "Round %s: %s The run goes on without it.", server_round, error)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Send the global model to the clients sampled for federated evaluation."""
        if server_round < self._done:
            return []
        return super().configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Aggregate the replies in the order of the client keys."""
        if server_round < self._done:
            return self._progress.evaluate_metrics.get(server_round)
        metrics = super().aggregate_evaluate(server_round, replies)
        if metrics is not None:
            self._progress.evaluate_metrics[server_round] = metrics
        return metrics


def _data(arrays: ArrayRecord) -> dict[str, bytes]:
    return {name: array.data for name, array in arrays.items()}
