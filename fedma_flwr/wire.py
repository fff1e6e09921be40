"""Tensors as Flower's arrays, in the model's precision or in half of it."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple
from weakref import ReferenceType, ref

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.common.serde import recorddict_to_proto
from flwr.proto.recorddict_pb2 import Array as ProtoArray
from numpy.typing import NDArray
from torch import Tensor

FLOAT32, FLOAT16, BFLOAT16 = "float32", "float16", "bfloat16"
WIRE_DTYPES = (FLOAT32, FLOAT16, BFLOAT16)
_HALVES = {FLOAT16: torch.float16, BFLOAT16: torch.bfloat16}
NPY = "numpy.ndarray"  # Flower's serialisation type of an array
_NPY_PREFIX, _USUAL_HEADER = 10, 256  # bytes: of magic, version and length; of a whole header
_SMALL = 2**16  # numbers that an array without data may claim
_STYPE = "fedma."  # + the wire's dtype: that of an array in half precision


def is_halved(dtype: torch.dtype, dims: int, wire_dtype: str) -> bool:
    """Whether a tensor crosses in half precision.

    Tensors of one axis do not: biases, norm parameters and running statistics are few, and what
    they lose would be felt most.
    """
    return wire_dtype in _HALVES and dtype in (torch.float32, torch.float64) and dims >= 2


def to_halves(tensor: Tensor, wire_dtype: str) -> Tensor:
    """Round to half precision; what is too large for it becomes its largest number."""
    half = _HALVES[wire_dtype]
    largest = torch.finfo(half).max
    return tensor.clamp(-largest, largest).to(half)


def rounded(tensors: Mapping[str, Tensor], wire_dtype: str) -> dict[str, Tensor]:
    """Tensors as the other side will have them, in their own dtypes."""
    return {
        name: to_halves(tensor, wire_dtype).to(tensor.dtype)
        if is_halved(tensor.dtype, tensor.dim(), wire_dtype)
        else tensor
        for name, tensor in tensors.items()
    }


def to_array(tensor: Tensor, wire_dtype: str = FLOAT32) -> Array:
    """One tensor; in half precision it is raw little-endian numbers, without numpy's header."""
    tensor = tensor.detach().cpu().contiguous()
    if not is_halved(tensor.dtype, tensor.dim(), wire_dtype):
        return _to_npy(tensor.numpy())
    # numpy knows no bfloat16: two bytes are two bytes.
    data = to_halves(tensor, wire_dtype).view(torch.int16).numpy().astype("<i2").tobytes()
    dtype = str(tensor.dtype).removeprefix("torch.")
    return Array(dtype, tuple(tensor.shape), _STYPE + wire_dtype, data)


def to_tensor(array: Array) -> Tensor:
    """What `to_array` made, in the dtype that the tensor had.

    Raises
    ------
    ValueError, TypeError
        If the array is not what it says it is.
    """
    wire_dtype = array.stype.removeprefix(_STYPE)
    check_extent(array)
    if not array.stype.startswith(_STYPE) or wire_dtype not in _HALVES:
        return torch.from_numpy(_numbers(array))
    dtype = {"float32": torch.float32, "float64": torch.float64}[array.dtype]
    words = np.frombuffer(array.data, dtype="<i2").astype(np.int16).reshape(array.shape)
    return torch.from_numpy(words).view(_HALVES[wire_dtype]).to(dtype)


def check_extent(array: Array) -> None:
    """Refuse an array that is larger than its data: numpy would allocate what it claims."""
    shape, size = tuple(array.shape), 1
    if array.stype == NPY:
        header = npy_header(array.data)
        shape, size = header.shape, header.dtype.itemsize
    # An axis of no length hides how long the others are: it counts as one.
    if size * math.prod(max(length, 1) for length in shape) > len(array.data) + _SMALL:
        raise ValueError(f"it claims the shape {shape} in {len(array.data)} bytes")


class NpyHeader(NamedTuple):
    """What numpy's format says before the numbers, and how many bytes it takes for that."""

    shape: tuple[int, ...]
    columns_first: bool
    dtype: np.dtype[Any]
    length: int


def npy_header(data: bytes) -> NpyHeader:
    """The header of an array in numpy's format.

    Raises
    ------
    ValueError
        If there is none, or one of another version than 1.0.
    """
    length = _NPY_PREFIX + int.from_bytes(data[_NPY_PREFIX - 2 : _NPY_PREFIX], "little")
    # A model's tensors have the same headers in every message.
    read = _read_header if length <= _USUAL_HEADER else _read_header.__wrapped__
    return read(bytes(data[:length]))


@lru_cache(maxsize=4096)
def _read_header(data: bytes) -> NpyHeader:
    stream = io.BytesIO(data)
    if (version := np.lib.format.read_magic(stream)) != (1, 0):
        raise ValueError(f"unknown npy version {version}: numpy's format is 1.0 here")
    return NpyHeader(*np.lib.format.read_array_header_1_0(stream), stream.tell())


def _numbers(array: Array) -> NDArray[Any]:
    """A copy of an array's numbers: the only one, and the data can be let go.

    What lies on disk is not copied: it is as good as memory, and takes none.
    """
    if array.stype != NPY:
        return array.numpy().copy()  # Flower's error
    shape, columns_first, dtype, start = npy_header(array.data)
    flat = np.frombuffer(array.data, dtype, math.prod(shape), start)
    numbers = flat.reshape(shape, order="F" if columns_first else "C")
    return numbers if _is_on_disk(array) and not columns_first else numbers.copy()


def _is_on_disk(array: Array) -> bool:
    """Whether data is a view of a file, and not the bytes that Flower has received."""
    return not isinstance(array.data, bytes)


def _to_npy(numbers: NDArray[Any]) -> Array:
    """As Flower makes it, with one copy of the numbers."""
    stream = io.BytesIO()
    header = np.lib.format.header_data_from_array_1_0(numbers)
    np.lib.format.write_array_header_1_0(stream, header)
    data = b"".join((stream.getvalue(), numbers.data))
    return Array(str(numbers.dtype), numbers.shape, NPY, data)


def wire_form(dtype: torch.dtype, shape: tuple[int, ...], wire_dtype: str) -> tuple[str, int]:
    """Serialisation type and number of bytes (without a header) that a tensor must come with."""
    if is_halved(dtype, len(shape), wire_dtype):
        return _STYPE + wire_dtype, 2 * math.prod(shape)
    return NPY, dtype.itemsize * math.prod(shape)


#: Arrays by the ids of their tensors, which need not be there any more.
Made = dict[int, tuple[ReferenceType[Tensor], Array]]


def to_arrays(
    tensors: Mapping[str, Tensor], wire_dtype: str = FLOAT32, made: Made | None = None
) -> ArrayRecord:
    """Tensors as an ArrayRecord (contiguous, on the CPU); shares the data of what is `made`."""
    made = {} if made is None else made
    arrays = {}
    for name, tensor in tensors.items():
        known, array = made.get(id(tensor), (None, None))
        if array is None or known is None or known() is not tensor:
            array = to_array(tensor, wire_dtype)
            made[id(tensor)] = ref(tensor), array
        arrays[name] = array
    return ArrayRecord(arrays)


def let_go(content: RecordDict) -> None:
    """Empty the ArrayRecords, which have been decoded."""
    for record in content.array_records.values():
        record.clear()


def to_tensors(arrays: ArrayRecord) -> dict[str, Tensor]:
    """An ArrayRecord of a trusted sender as tensors."""
    return {name: to_tensor(array) for name, array in arrays.items()}


def units_to_bytes(units: Tensor, width: int) -> bytes:
    """Unit numbers below a width, in two or four bytes each."""
    kind = np.uint16 if width <= 2**16 else np.uint32
    return units.numpy().astype(f"<{np.dtype(kind).str[1:]}").tobytes()


def data_bytes(content: RecordDict) -> int:
    """Bytes of the arrays in records, without copying them."""
    return sum(len(a.data) for record in content.array_records.values() for a in record.values())


def count_bytes(contents: Iterable[RecordDict]) -> int:
    """Bytes that records have when they are serialised, by the lengths of what is in them.

    Arrays' data is not copied to be counted. A record or content that is there several times is
    looked at once.

    Raises
    ------
    TypeError, ValueError, AttributeError
        If something in them cannot be serialised.
    """
    counted: dict[int, tuple[RecordDict, int]] = {}  # with the content: ids are not used again
    known: dict[int, int] = {}  # of records: contents may share them
    total = 0
    for content in contents:
        if id(content) not in counted:
            size = sum(_item_bytes(name, record, known) for name, record in content.items())
            counted[id(content)] = content, size
        total += counted[id(content)][1]
    return total


def _item_bytes(name: str, record: Any, known: dict[int, int]) -> int:
    if not isinstance(record, ArrayRecord):  # small
        return int(recorddict_to_proto(RecordDict({name: record})).ByteSize())
    if id(record) not in known:
        known[id(record)] = sum(
            _field(_unless_empty(len(key.encode())) + _field(_array_bytes(array)))
            for key, array in record.items()
        )
    return _field(_unless_empty(len(name.encode())) + _field(known[id(record)]))


def _array_bytes(array: Array) -> int:
    """Bytes of an array's message in Flower's protocol."""
    if not isinstance(array.data, bytes | memoryview):
        raise TypeError(f"an array's data is a {type(array.data).__name__}")
    without = ProtoArray(dtype=array.dtype, shape=array.shape, stype=array.stype)
    return int(without.ByteSize()) + _unless_empty(len(array.data))


def _unless_empty(length: int) -> int:
    """Bytes of a text or of bytes: what is empty is not sent."""
    return _field(length) if length else 0


def _field(length: int) -> int:
    """Bytes of a field that says its length: a tag, the length in sevenths of bytes, and itself."""
    return 1 + max(1, math.ceil(length.bit_length() / 7)) + length
