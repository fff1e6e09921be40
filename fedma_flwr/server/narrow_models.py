"""Evaluation at a ratio: the models that narrow clients run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from logging import INFO
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore import log

from fedma_flwr import protocol
from fedma_flwr.protocol import Instruction
from fedma_flwr.server.arguments import check_arguments
from fedma_flwr.server.head_choice import Subject
from fedma_flwr.server.round import CommunicationRound
from fedma_flwr.server.settings_holder import SettingsHolder
from fedma_flwr.structure import PermutationSpec
from fedma_flwr.structure.narrowing import keeps_its_width

_SOMEBODY = -1  # a node that there is none of


class NarrowModels(SettingsHolder):
    """A cohort whose narrow clients evaluate the models that they run."""

    def _keep_settings(
        self, spec: PermutationSpec, arguments: Mapping[str, Any], subject: Subject
    ) -> None:
        super()._keep_settings(spec, arguments, subject)
        fixed = keeps_its_width(spec)
        if len(fixed) == len(spec.groups) and min(self.client_widths.values(), default=1.0) < 1.0:
            raise ValueError(
                f"client_widths was {self.client_widths!r}, but no group of this model can follow: "
                f"all have a fixed width ({next(iter(fixed.values()), 'there are none')})."
            )

    def summary(self) -> None:
        """Log the configuration, with what narrow clients have."""
        if self.client_widths:
            fixed = ", ".join(keeps_its_width(self.settings.spec)) or "none"
            log(INFO, "\t├──> Narrow clients: %s", self.client_widths)
            log(INFO, "\t│\t└── Groups that keep their width: %s", fixed)
        super().summary()

    def arrays_at(self, width: float) -> ArrayRecord:
        """The last round's model at a ratio, as a narrow client runs it.

        If clients of this width take part it has the head that was solved for them.

        Parameters
        ----------
        width : float
            Above 0, at most 1: the whole model.

        Returns
        -------
        ArrayRecord
            For ``load_model(Net(), strategy.arrays_at(0.25))``.

        Raises
        ------
        ValueError
            If `width` is out of range.
        """
        check_arguments({"width": width})
        if width == 1.0:
            return protocol.to_arrays(self._model.handed_out)
        current = self._next_round(self._progress.round, {_SOMEBODY: width})
        member = current.members[_SOMEBODY]
        tensors = current.evaluated(member, self._model.handed_out, own_head=not self._model.best)
        return protocol.to_arrays(tensors)

    def _next_round(self, server_round: int, ratios: dict[int, float]) -> CommunicationRound:
        """The round after this one, as far as it says what clients would begin with."""
        keys = {node: "" if node == _SOMEBODY else self.client_key(node) for node in ratios}
        return CommunicationRound(
            settings=self.settings,
            model=self._model,
            number=server_round + 1,
            members=keys.items(),
            ratios=ratios,
            config={},
            nonce="",
        )

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Send the global model for evaluation; to narrow clients the model of their width."""
        messages = super().configure_evaluate(server_round, arrays, config, grid)
        nodes = [message.metadata.dst_node_id for message in messages]
        current = self._next_round(server_round, {n: self.client_width(n) for n in nodes})
        own_head = arrays is self._given and not self._model.best
        for message, node in zip(messages, nodes, strict=True):
            member = current.members[node]
            if not current.is_narrow(member):
                continue
            tensors = protocol.to_tensors(arrays)
            narrow = current.evaluated(member, tensors, own_head=own_head)
            record = {self.arrayrecord_key: protocol.to_arrays(narrow)}
            message.content = RecordDict({**message.content, **record})
        return messages

    def _evaluation(self, server_round: int, node: int) -> Instruction:
        instruction = super()._evaluation(server_round, node)
        current = self._next_round(server_round, {node: self.client_width(node)})
        if current.is_narrow(current.members[node]):  # it holds its own units, wherever they are
            return replace(instruction, assignments={}, widths={})
        return instruction
