"""A cohort with FedMA's settings, which the initial arrays may still narrow down."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from logging import INFO
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore import log
from torch import Tensor

from fedma_flwr import protocol
from fedma_flwr.protocol import Instruction
from fedma_flwr.server.head_choice import Subject
from fedma_flwr.server.matchings_folder import MatchingsFolder
from fedma_flwr.server.recorded_cohort import RecordedCohort
from fedma_flwr.server.settings import RoundSettings, make_settings
from fedma_flwr.structure import PermutationSpec, SpecError, under_names


class SettingsHolder(RecordedCohort):
    """A recorded cohort whose clients may keep tensors to themselves."""

    settings: RoundSettings
    _matchings: MatchingsFolder | None

    def _keep_settings(
        self, spec: PermutationSpec, arguments: Mapping[str, Any], subject: Subject
    ) -> None:
        """Work out the settings of a model of which all tensors are known."""
        self._whole, self._arguments = spec, dict(arguments)
        self._subject = subject
        self._fitted: ArrayRecord | None = None  # the arrays that were looked at last
        self._take(self._settings_of(None))

    def _settings_of(self, present: Collection[str] | None) -> RoundSettings:
        return make_settings(
            self._whole,
            self._arguments,
            self,
            present=present,
            subject=self._subject,
        )

    def _take(self, settings: RoundSettings) -> None:
        self.settings = settings
        folder, widths = self._arguments["matchings"], settings.max_widths
        self._matchings = None if folder is None else MatchingsFolder(Path(folder), widths)

    def _fit(self, initial_arrays: ArrayRecord) -> dict[str, Tensor]:
        """Let the initial arrays say which tensors take part; return them by the model's names.

        Raises
        ------
        SpecError
            If they are not tensors of the model.
        """
        initial = under_names(protocol.to_tensors(initial_arrays), self._whole.axes)
        if self._fitted is initial_arrays:
            return initial
        self._fitted = initial_arrays
        absent = [name for name in self._whole.axes if name not in initial]
        if len(absent) == len(self._whole.axes):
            raise SpecError(f"initial_arrays have none of the model's tensors: {absent[:5]}, ...")
        if absent or self.settings.partial:
            self._take(self._settings_of(initial if absent else None))
        spec = self.settings.client_spec
        spec.check(initial, widths={name: spec.sizes[name] for name in spec.groups})
        if absent:
            log(
                INFO,
                "initial_arrays lack %s of the model's %s tensors (%s%s): they stay with the "
                "clients, and units that they share with others are not matched.",
                len(absent),
                len(self._whole.axes),
                ", ".join(absent[:3]),
                ", ..." * (len(absent) > 3),
            )
        return initial

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Send the global model for evaluation, and which units are each client's own."""
        messages = super().configure_evaluate(server_round, arrays, config, grid)
        if self.settings.taking_part is not None:
            for message in messages:
                instruction = self._evaluation(server_round, message.metadata.dst_node_id)
                record = {protocol.FEDMA_KEY: instruction.to_record()}
                message.content = RecordDict({**message.content, **record})
        return messages

    def _evaluation(self, server_round: int, node: int) -> Instruction:
        own = self._model.assignments.get(self.client_key(node), {})
        popularity = self._model.popularity
        return Instruction(
            protocol.EVALUATE,
            round=server_round,
            assignments=own,
            widths={group: len(popularity[group]) for group in own},
            personal=self.settings.personal,
            follows=self.client_key(node) in self._model.assignments,
            partial=self.settings.partial,
            arrays_key=self.arrayrecord_key,
        )
