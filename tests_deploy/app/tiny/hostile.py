"""A client that lies in bytes of its own: what it sends is no message that Flower would make."""

from collections.abc import Callable
from typing import Any

from flwr.app import Context, Message
from flwr.common import serde_utils

KEY = "hostile"  # the client key of the node that lies
UNSET = "a value of which no field is set"


def lie(
    message: Message, context: Context, call_next: Callable[[Message, Context], Message]
) -> Message:
    """Send a config value without a field, which Flower's decoder raises on; hello like others."""
    answer = call_next(message, context)
    told = answer.content.get("fedma") if not answer.has_error() else None
    if context.node_config["client-key"] == KEY and told and told["status"] != "hello":
        told["unread"] = UNSET
        _write_unset_values()
    return answer


def _write_unset_values() -> None:
    """From here on; the process ends with this message."""
    write = serde_utils._record_value_to_proto

    def written(value: Any, allowed_types: list[type], proto_class: type[Any]) -> Any:
        return proto_class() if value == UNSET else write(value, allowed_types, proto_class)

    serde_utils._record_value_to_proto = written
