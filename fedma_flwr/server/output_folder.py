"""What a run of the shipped tasks leaves behind: its exchanges, its rounds, its model."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from logging import ERROR, INFO, WARNING
from pathlib import Path
from typing import Any

import safetensors.torch
from flwr.app import ArrayRecord
from flwr.supercore import log
from torch import Tensor

from fedma_flwr import protocol
from fedma_flwr.report.file_names import EXCHANGES, MODEL, REPORT, RESULT, SETTINGS
from fedma_flwr.server.folders import as_folder, claimed, make_folder
from fedma_flwr.server.history import ExchangeRecord, History
from fedma_flwr.server.whole_files import written_whole
from fedma_flwr.structure import PermutationSpec

_FILES = (EXCHANGES, RESULT, SETTINGS, MODEL, REPORT)
_NOT_WRITTEN = "%s was not written to %s (%s). The run goes on; the next round tries again."


class OutputFolder:
    """Collect what a run does, and write it to a folder while it goes on.

    Parameters
    ----------
    folder : Path or None
        Gets ``exchanges.jsonl`` (one JSON object an exchange, appended), ``result.json`` (the run
        so far, replaced after every round), ``settings.json``, ``model.safetensors`` and, from all
        these, ``report.html``. None: nothing is written.
    spec : PermutationSpec or None
        Of the model, for its widths; None for strategies that know no groups.
    about : mapping
        What ``result.json`` says about the run: strategy, task, seed, config.
    resume : bool (default: False)
        The run goes on from a checkpoint: keep the rounds that are already in the folder.

    Raises
    ------
    ValueError
        If the folder cannot be made.
    """

    def __init__(
        self,
        folder: Path | None,
        spec: PermutationSpec | None,
        about: Mapping[str, Any],
        *,
        resume: bool = False,
    ) -> None:
        self.folder = folder = None if folder is None else as_folder("output_dir", folder)
        self.spec = spec
        self.result: dict[str, Any] = {**about, "rounds": []}
        self._started = time.monotonic()
        self._initial_parameters = 0
        self._resumed = resume
        self._torn = False  # whether EXCHANGES lacks some, or ends within one
        if folder is None:
            return
        make_folder("output_dir", folder)
        if resume:
            self._read_rounds(folder / RESULT)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Within this context the folder can be written to and is no other run's.

        Raises
        ------
        ValueError
            If it cannot be, or is.
        """
        if self.folder is None:
            yield
            return
        stale = tuple(str(Path(name).with_suffix(".partial")) for name in _FILES)
        with claimed("output_dir", self.folder, stale):
            yield

    def _clear(self) -> None:
        """Remove what an earlier run has left: it must not pass for this one's."""
        if self.folder is None or self._resumed:
            return
        for name in _FILES:
            (self.folder / name).unlink(missing_ok=True)

    def _read_rounds(self, file: Path) -> None:
        if not file.exists():
            return
        self.result["rounds"] = rounds = json.loads(file.read_text(encoding="utf-8"))["rounds"]
        if rounds:
            self._started -= rounds[-1]["seconds"]

    def _go_on(self, server_round: int, history: History) -> None:
        """Drop what the earlier run did after its checkpoint: it is done again."""
        self._resumed = False
        rounds = self.result["rounds"]
        self.result["rounds"] = [entry for entry in rounds if entry["round"] < server_round]
        self._write_all(history)

    def _write_all(self, history: History) -> None:
        lines = [json.dumps(record.to_json()) + "\n" for record in history]
        self._torn = not self._write(EXCHANGES, "".join(lines).encode())

    def add_exchange(self, record: ExchangeRecord) -> None:
        """Append an exchange; one that cannot be written is, with the next round's result."""
        if self.folder is None or self._torn:
            return
        try:
            with (self.folder / EXCHANGES).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record.to_json()) + "\n")
        except OSError as error:
            self._torn = True
            log(WARNING, _NOT_WRITTEN, EXCHANGES, self.folder, error)

    def add_round(
        self,
        server_round: int,
        arrays: ArrayRecord,
        history: History,
        **measured: Any,
    ) -> None:
        """Add the global model's state after a round; round 0 is the initial model.

        Parameters
        ----------
        server_round : int
            Communication round.
        arrays : ArrayRecord
            The global model.
        history : History
            The exchanges so far.
        **measured : Any
            ``loss`` and ``accuracy`` on the test examples, or other figures.
        """
        self.add_tensors(server_round, protocol.to_tensors(arrays), history, **measured)

    def add_tensors(
        self, server_round: int, tensors: Mapping[str, Tensor], history: History, **measured: Any
    ) -> None:
        """Do what `add_round` does, for tensors by their names."""
        parameters = sum(tensor.numel() for tensor in tensors.values())
        if server_round == 0:
            self._clear()  # now, since a run that is refused before must not lose an earlier one's
            self._initial_parameters = parameters
            return
        if self._resumed or self._torn:
            self._go_on(server_round, history)
        entry = {
            "round": server_round,
            "given-up": history.given_up.get(server_round),
            **measured,
            **history.totals(),
            "seconds": round(time.monotonic() - self._started, 3),
            "widths": {} if self.spec is None else self.spec.widths(tensors),
            "growth": parameters / self._initial_parameters,
        }
        self.result["rounds"].append(entry)
        self._write_result()

    def _write_result(self) -> None:
        self._write(RESULT, json.dumps(self.result, indent=2).encode())

    def add_metrics(self, server_round: int, where: str, metrics: Mapping[str, Any]) -> None:
        """Add what was measured `where` after a round that is there already."""
        for entry in self.result["rounds"]:
            if entry["round"] == server_round:
                entry.setdefault("metrics", {})[where] = dict(metrics)
                self._write_result()

    def add_settings(self, settings: Mapping[str, Any]) -> None:
        """Write what was set, and the versions that it runs on."""
        self._write(SETTINGS, json.dumps(settings, indent=2).encode())

    @contextmanager
    def reported(self) -> Iterator[None]:
        """Make the report when this context ends, and also where it fails: it says who dropped."""
        try:
            yield
        finally:
            self.add_report()

    def add_report(self) -> None:
        """Make ``report.html`` from what was written; what hinders it is said, and no more."""
        if self.folder is None or not self._initial_parameters:  # nothing has been sent
            return
        if not any((self.folder / name).exists() for name in (EXCHANGES, RESULT)):
            return
        try:
            from fedma_flwr.report import write_report

            path = write_report([self.folder], self.folder / REPORT)
            log(INFO, "The report of the run is %s", path)
        except Exception as error:  # a picture is not worth a run
            log(WARNING, "%s was not written to %s: %s", REPORT, self.folder, error)

    def add_model(self, arrays: ArrayRecord) -> None:
        """Save the final model; `load_model` takes what ``safetensors.torch.load_file`` reads."""
        if not self._write(MODEL, safetensors.torch.save(protocol.to_tensors(arrays))):
            log(ERROR, "The run is over, and its model was not saved to %s.", self.folder)

    def _write(self, name: str, data: bytes) -> bool:
        """Whether a file is written; a full disk or a vanished folder must not end the run."""
        if self.folder is None:
            return True
        try:
            with written_whole(self.folder / name) as partial:
                partial.write_bytes(data)
        except OSError as error:
            log(WARNING, _NOT_WRITTEN, name, self.folder, error)
            return False
        return True
