"""An array's bytes as a tensor: no client is trusted, so that nothing is believed unseen."""

from __future__ import annotations

import numpy as np
import torch
from flwr.app import Array
from torch import Tensor

from fedma_flwr import wire
from fedma_flwr.server.reply_errors import ReplyError

_NPY_HEADER_BYTES = 4096  # more than numpy ever writes before the data


def decode(
    name: str,
    array: Array,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    wire_dtype: str = wire.FLOAT32,
) -> Tensor:
    """One array of an untrusted sender as a tensor.

    Parameters
    ----------
    name : str
        Of the tensor, for the error.
    array : Array
        What has come.
    dtype, shape
        What the tensor must have.
    wire_dtype : {"float32", "float16", "bfloat16"} (default: "float32")
        Precision in which it was asked for.

    Raises
    ------
    ReplyError
        If it is anything else, or lies about itself; nothing has been allocated for it then.
    """
    wanted = str(dtype).removeprefix("torch.")
    stype, size = wire.wire_form(dtype, shape, wire_dtype)
    header = _NPY_HEADER_BYTES if stype == wire.NPY else 0
    if array.dtype != wanted or not size <= len(array.data) <= size + header:
        raise ReplyError(
            f"tensor {name!r} comes as {array.dtype} in {len(array.data)} bytes; {wanted} of shape "
            f"{shape} in {size} bytes was expected: send the model in its own precision, as in "
            "`ArrayRecord(model.float().state_dict())`"
        )
    try:
        if array.stype != stype:
            raise TypeError(f"its serialisation is {array.stype!r} instead of {stype!r}")
        if stype == wire.NPY:
            _check_header(array.data, shape, wanted)
        return wire.to_tensor(array).reshape(shape)
    except Exception as error:  # whatever hostile bytes provoke in the decoder
        raise ReplyError(f"tensor {name!r} cannot be decoded: {error}") from error


def _check_header(data: bytes, shape: tuple[int, ...], dtype: str) -> None:
    """Refuse data whose own header claims another size: numpy would allocate what it claims."""
    header = wire.npy_header(data)
    if header.shape != shape or header.dtype != np.dtype(dtype):
        raise ValueError(f"its data is {header.dtype} of shape {header.shape}")
