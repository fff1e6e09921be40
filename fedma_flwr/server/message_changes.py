"""What a subclass's `configure_train` has changed in a message, for those of later stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, Message

from fedma_flwr import protocol
from fedma_flwr.server.members import Changes


@dataclass(frozen=True)
class MadeMessage:
    """A message as FedMA made it, before an override had its hands on it."""

    config_key: str
    arrays_key: str
    config: Mapping[str, Any]
    instruction: Mapping[str, Any]
    arrays: Mapping[str, bytes]

    @classmethod
    def of(cls, message: Message, config_key: str, arrays_key: str) -> MadeMessage:
        """Take note of what is in a message; a reference to its arrays' bytes, not a copy."""
        content = message.content
        return cls(
            config_key,
            arrays_key,
            _entries(message, config_key),
            dict(content.config_records[protocol.FEDMA_KEY]),
            _data(content.array_records.get(arrays_key)),
        )

    def changes(self, message: Message, who: str) -> Changes:
        """What has been changed in a message.

        Raises
        ------
        ValueError
            If the stage's own parts are missing or changed; names the method and the remedy.
        """
        content = message.content
        instruction = content.config_records.get(protocol.FEDMA_KEY)
        if instruction is None or dict(instruction) != self.instruction:
            raise ValueError(
                f"{who} returned a message without FedMA's record {protocol.FEDMA_KEY!r}, or with "
                "another one: change the messages that `super().configure_train(...)` returns, "
                "and copy all records if you make new ones."
            )
        if _data(content.array_records.get(self.arrays_key)) != self.arrays:
            raise ValueError(
                f"{who} changed the arrays of a message. FedMA's clients keep their models between "
                "stages and are sent parts of it: change the global model in `aggregate_train`."
            )
        config = _entries(message, self.config_key)
        own = {protocol.FEDMA_KEY, self.config_key, self.arrays_key}
        return Changes(
            {k: v for k, v in config.items() if k not in self.config or self.config[k] != v},
            frozenset(key for key in self.config if key not in config),
            {name: record for name, record in content.items() if name not in own},
            message.metadata.message_type,
        )


def _entries(message: Message, key: str) -> dict[str, Any]:
    record = message.content.config_records.get(key)
    return {} if record is None else dict(record)


def _data(arrays: ArrayRecord | None) -> dict[str, bytes]:
    return {} if arrays is None else {name: array.data for name, array in arrays.items()}
