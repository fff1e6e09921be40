"""Tensors as Flower's arrays, in the model's precision or in half of it."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.common.serde import recorddict_to_proto
from torch import Tensor

FLOAT32, FLOAT16, BFLOAT16 = "float32", "float16", "bfloat16"
WIRE_DTYPES = (FLOAT32, FLOAT16, BFLOAT16)
_HALVES = {FLOAT16: torch.float16, BFLOAT16: torch.bfloat16}
NPY = "numpy.ndarray"  # Flower's serialisation type of an array
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
        return Array(tensor.numpy())
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
        return torch.from_numpy(array.numpy().copy())
    dtype = {"float32": torch.float32, "float64": torch.float64}[array.dtype]
    words = np.frombuffer(array.data, dtype="<i2").astype(np.int16).reshape(array.shape)
    return torch.from_numpy(words).view(_HALVES[wire_dtype]).to(dtype)


def check_extent(array: Array) -> None:
    """Refuse an array that is larger than its data: numpy would allocate what it claims."""
    shape, size = tuple(array.shape), 1
    if array.stype == NPY:
        stream = io.BytesIO(array.data)
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("its data has another version of numpy's format than 1.0")
        shape, _, kind = np.lib.format.read_array_header_1_0(stream)
        size = kind.itemsize
    # An axis of no length hides how long the others are: it counts as one.
    if size * math.prod(max(length, 1) for length in shape) > len(array.data) + _SMALL:
        raise ValueError(f"it claims the shape {shape} in {len(array.data)} bytes")


def wire_form(dtype: torch.dtype, shape: tuple[int, ...], wire_dtype: str) -> tuple[str, int]:
    """Serialisation type and number of bytes (without a header) that a tensor must come with."""
    if is_halved(dtype, len(shape), wire_dtype):
        return _STYPE + wire_dtype, 2 * math.prod(shape)
    return NPY, dtype.itemsize * math.prod(shape)


def to_arrays(tensors: Mapping[str, Tensor], wire_dtype: str = FLOAT32) -> ArrayRecord:
    """Tensors as an ArrayRecord (contiguous, on the CPU)."""
    return ArrayRecord({name: to_array(tensor, wire_dtype) for name, tensor in tensors.items()})


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
    """Bytes of serialised records; a record sent to many clients is serialised once."""
    sizes: dict[int, int] = {}
    total = 0
    for content in contents:
        if id(content) not in sizes:
            sizes[id(content)] = recorddict_to_proto(content).ByteSize()
        total += sizes[id(content)]
    return total
