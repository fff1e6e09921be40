"""Which entries of a message's config a train function never looks at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flwr.app import ConfigRecord, Message

from fedma_flwr import protocol
from fedma_flwr.protocol import Instruction
from fedma_flwr.structure.stages import LOCAL


class WatchedConfig(ConfigRecord):
    """A config record that knows which of its entries were looked at.

    Whoever walks over it, copies it or compares it has seen all of it: "never" is certain.

    Parameters
    ----------
    record : ConfigRecord
        What it holds a copy of.
    """

    def __init__(self, record: ConfigRecord) -> None:
        self.__dict__["unread"] = set(record)
        super().__init__(dict(record))

    @property
    def unread(self) -> set[str]:
        """Entries that nobody has looked at, by name."""
        names: set[str] = self.__dict__["unread"]
        return names

    def plain(self) -> ConfigRecord:
        """An ordinary record with the same entries."""
        return ConfigRecord(dict(self.items()))

    def __getitem__(self, item: str) -> Any:
        self.unread.discard(item)
        return super().__getitem__(item)

    def __contains__(self, key: object) -> bool:
        self.unread.discard(str(key))
        return super().__contains__(key)

    def __iter__(self) -> Iterator[str]:
        self.unread.clear()
        return super().__iter__()

    def keys(self) -> Any:
        """All names."""
        self.unread.clear()
        return super().keys()

    def values(self) -> Any:
        """All values."""
        self.unread.clear()
        return super().values()

    def items(self) -> Any:
        """All entries."""
        self.unread.clear()
        return super().items()

    def __eq__(self, other: object) -> bool:
        self.unread.clear()
        return super().__eq__(other)

    __hash__ = None  # type: ignore[assignment]  # no record has one

    def __repr__(self) -> str:
        self.unread.clear()
        return super().__repr__()

    def copy(self) -> Any:
        """An ordinary record with the same entries."""
        return self.plain()

    def deflate(self) -> bytes:
        """Bytes of an ordinary record: Flower writes the class's name into them."""
        return self.plain().deflate()

    def __reduce__(self) -> tuple[Any, ...]:
        return ConfigRecord, (dict(self.items()),)  # to other processes, and for copies


def watch(message: Message, instruction: Instruction) -> list[WatchedConfig]:
    """Put such records into the message of a stage whose config may differ from the local stage's.

    Parameters
    ----------
    message : Message
        It is changed in place.
    instruction : Instruction
        The message's.

    Returns
    -------
    list of WatchedConfig
        Empty for the local stage, and where nothing is trained.
    """
    if instruction.name == LOCAL or instruction.head_module:
        return []
    watched = {
        name: WatchedConfig(record)
        for name, record in message.content.config_records.items()
        if name != protocol.FEDMA_KEY
    }
    message.content.update(watched)
    return list(watched.values())


def never_read(watched: list[WatchedConfig]) -> tuple[str, ...]:
    """Entries that nobody has looked at, by name."""
    return tuple(sorted({name for record in watched for name in record.unread}))
