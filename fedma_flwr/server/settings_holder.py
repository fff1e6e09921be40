"""A cohort with FedMA's settings, which the initial arrays may still narrow down."""

from __future__ import annotations

from collections.abc import Mapping
from logging import INFO
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore import log
from torch import Tensor

from fedma_flwr import protocol
from fedma_flwr.protocol import Instruction
from fedma_flwr.server.matchings_folder import MatchingsFolder
from fedma_flwr.server.resuming import ResumableCohort
from fedma_flwr.server.settings import RoundSettings, make_settings
from fedma_flwr.structure import PermutationSpec, SpecError


class SettingsHolder(ResumableCohort):
    """A resumable cohort whose clients may keep tensors to themselves."""

    settings: RoundSettings
    _matchings: MatchingsFolder | None

    def _keep_settings(self, spec: PermutationSpec, arguments: Mapping[str, Any]) -> None:
        """Work out the settings of a model of which all tensors are known."""
        self._whole, self._arguments = spec, dict(arguments)
        self._take(make_settings(spec, arguments, cohort=self))

    def _take(self, settings: RoundSettings) -> None:
        self.settings = settings
        folder, widths = self._arguments["matchings"], settings.max_widths
        self._matchings = None if folder is None else MatchingsFolder(Path(folder), widths)

    def _fit(self, initial: Mapping[str, Tensor]) -> None:
        """Let the initial arrays say which tensors take part.

        Raises
        ------
        SpecError
            If they are not tensors of the model.
        """
        absent = [name for name in self._whole.axes if name not in initial]
        if len(absent) == len(self._whole.axes):
            raise SpecError(f"initial_arrays have none of the model's tensors: {absent[:5]}, ...")
        if absent or self.settings.partial:
            present = initial if absent else None
            self._take(make_settings(self._whole, self._arguments, self, present))
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
