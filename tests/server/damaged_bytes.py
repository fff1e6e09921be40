"""Replies as bytes, damaged on their way: what a hostile node can send over Flower's wire."""

from contextlib import suppress

from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from fedma_flwr.testing import InProcessGrid
from fedma_flwr.testing.in_process_grid import FIRST_NODE_ID

NUMBERS = [float("inf"), -float("inf"), float("nan"), 1e308, -1e308, 5e-324, -0.0]
WHOLES = [2**63 - 1, -(2**63), -1, 0, 2**53 + 1]
TEXTS = ["", "\x00", "a\nINFO : forged", "\x1b[2J", "x" * 10**5, "hello", "done", "lost", "²"]
FIELDS = {"double": NUMBERS, "sint64": WHOLES, "uint64": [2**64 - 1], "bool": [True]}
FIELDS |= {"string": TEXTS, "bytes": [b"", b"\xff" * 9]}
LISTS = {"double_list": NUMBERS, "sint_list": WHOLES, "uint_list": [2**64 - 1]}
LISTS |= {"string_list": TEXTS, "bytes_list": [b""], "bool_list": [True]}


def flip(data, rng):
    """One to eight bits, or a few bytes left out, repeated or added."""
    data, kind = bytearray(data or b"\x00"), rng.integers(4)
    place = int(rng.integers(len(data)))
    if kind == 0:
        del data[place : place + int(rng.integers(1, 9))]
    elif kind == 1:
        data[place:place] = data[place : place + int(rng.integers(1, 9))]
    elif kind == 2:
        data[place:place] = rng.bytes(int(rng.integers(1, 9)))
    else:
        for place in rng.integers(len(data), size=int(rng.integers(1, 9))):
            data[place] ^= 1 << int(rng.integers(8))
    return bytes(data)


def pick(rng, things):
    return list(things)[int(rng.integers(len(things)))]


def parts(proto):
    """All records' items of a message: ("config", item), ("array", array), ("record", item)."""
    for item in proto.content.items:
        yield "record", item
        for kind in ("config_record", "metric_record"):
            if item.HasField(kind):
                yield from (("value", entry) for entry in getattr(item, kind).items)
        if item.HasField("array_record"):
            yield from (("array", entry) for entry in item.array_record.items)


def unset(proto, rng):
    _, part = pick(rng, list(parts(proto)))
    part.ClearField(pick(rng, [field.name for field in part.DESCRIPTOR.fields]))


def repeat(proto, rng):
    items = pick(rng, _lists(proto))
    for _ in range(int(rng.integers(1, 4))):
        items.add().CopyFrom(items[int(rng.integers(len(items)))])
    if rng.integers(2):
        items[-1].key = pick(rng, TEXTS[:4]) or f"{items[-1].key}-again"


def swap(proto, rng):
    """The values of two items of one kind, or their keys."""
    items = pick(rng, _lists(proto))
    one, other = items[int(rng.integers(len(items)))], items[int(rng.integers(len(items)))]
    one.key, other.key = other.key, one.key


def put(proto, rng):
    """Another value, of any type, in a config or a metric."""
    values = [part for kind, part in parts(proto) if kind == "value"]
    if not values:
        return
    value = pick(rng, values).value
    fields = {field.name for field in value.DESCRIPTOR.fields}
    name = pick(rng, sorted(fields & (FIELDS.keys() | LISTS.keys())))
    if name in FIELDS:
        setattr(value, name, pick(rng, FIELDS[name]))
    else:
        chosen = [pick(rng, LISTS[name]) for _ in range(int(rng.integers(0, 4)))]
        getattr(value, name).vals.extend(chosen)
        getattr(value, name).SetInParent()


def array(proto, rng):
    """Another dtype, shape or serialisation, or damaged data."""
    arrays = [part.value for kind, part in parts(proto) if kind == "array"]
    if not arrays:
        return
    chosen, kind = pick(rng, arrays), rng.integers(4)
    if kind == 0:
        chosen.dtype = pick(rng, ["float64", "complex64", "object", "<U9", "", "x" * 10**4])
    elif kind == 1:
        chosen.shape.append(pick(rng, [0, 1, -1, 2**31 - 1, -(2**31)]))
    elif kind == 2:
        chosen.stype = pick(rng, ["", "fedma.float16", "fedma.bfloat16", "pickle"])
    else:
        chosen.data = flip(chosen.data[:128], rng) + chosen.data[128:]


def envelope(proto, rng):
    """The message around the records: whose reply it is, content or error."""
    kind = rng.integers(5)
    if kind == 0:  # another client's, perhaps
        number = int(proto.metadata.reply_to_message_id.removeprefix("message-"))
        proto.metadata.reply_to_message_id = f"message-{number + int(rng.integers(-2, 3))}"
    elif kind == 1:
        proto.ClearField("content")
    elif kind == 2:
        proto.error.code, proto.error.reason = 2, pick(rng, TEXTS)
    elif kind == 3:
        proto.ClearField("content")
        proto.error.code, proto.error.reason = int(rng.integers(-9, 9)), pick(rng, TEXTS)
    else:
        proto.metadata.ClearField(pick(rng, [f.name for f in proto.metadata.DESCRIPTOR.fields]))


def _lists(proto):
    lists = [proto.content.items]
    for item in proto.content.items:
        for kind in ("config_record", "metric_record", "array_record"):
            if item.HasField(kind) and getattr(item, kind).items:
                lists.append(getattr(item, kind).items)
    return [items for items in lists if items]


DAMAGES = [unset, repeat, swap, put, put, array, array, envelope]


def damaged(reply, rng):
    """A reply after its bytes were damaged, if Flower's decoder lets it pass; else it raises."""
    if not reply.has_error() and rng.integers(8) == 0:  # as deployments store it: by object
        reply.metadata.__dict__["_message_id"] = key = reply.object_id
        objects = {name: part.deflate() for name, part in get_all_nested_objects(reply).items()}
        name = pick(rng, sorted(objects))
        objects[name] = flip(objects[name], rng)
        return inflate_object_from_contents(key, objects)
    proto = message_to_proto(reply)
    if reply.has_error() or rng.integers(3) == 0:
        return message_from_proto(ProtoMessage.FromString(flip(proto.SerializeToString(), rng)))
    for _ in range(int(rng.integers(1, 4))):
        if not proto.content.items:
            break
        with suppress(ValueError, TypeError):  # out of a field's range
            pick(rng, DAMAGES)(proto, rng)
    return message_from_proto(ProtoMessage.FromString(proto.SerializeToString()))


class DamagingGrid(InProcessGrid):
    """A grid that decodes replies as Flower's does: all that were there are gone if one raises.

    Parameters
    ----------
    app, num_clients
        As for `InProcessGrid`.
    honest : int
        The replies of this many clients arrive as they are.
    damage : callable
        Called with the reply of another, it returns what arrives, or raises.
    """

    def __init__(self, app, num_clients, honest, damage, **options):
        super().__init__(app, num_clients, **options)
        self.honest, self.damage, self.damages = honest, damage, 0

    def push_messages(self, messages):
        messages = list(messages)
        ids = super().push_messages(messages)
        self.hostile = {
            m.metadata.message_id
            for m in messages
            if m.metadata.dst_node_id >= FIRST_NODE_ID + self.honest
        }
        return ids

    def pull_messages(self, message_ids):
        ids = [key for key in message_ids if key in self._replies]
        replies = [self._replies.pop(key) for key in ids]
        self.damages += len(self.hostile & set(ids))
        pairs = zip(ids, replies, strict=True)
        return [self.damage(r) if key in self.hostile else r for key, r in pairs]
