"""Run a model in float64 throughout, also where its code asks for fewer bits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_FEWER_BITS = frozenset({torch.float32, torch.float16, torch.bfloat16})
_CASTS = frozenset({Tensor.float, Tensor.half, Tensor.bfloat16})
_FEWER_COMPLEX = frozenset({torch.complex64, torch.complex32})
_COMPLEX_CASTS = frozenset({getattr(Tensor, name) for name in ("cfloat", "chalf")})

_GROUPED = frozenset({torch._grouped_mm, getattr(functional, "grouped_mm", torch._grouped_mm)})
_EXPERTS = 3  # axes of the experts' matrices
_ALIGNED = 4  # numbers of float32 in the 16 bytes that torch's own wants rows to be multiples of

_CONVOLUTIONS = frozenset({torch.conv2d, functional.conv2d})
# Torch's own convolution in float64 reads the weights once for each image, and goes through groups
# one by one: slow for so many weights, or channels of their own, and so few positions of an image.
_MANY, _CHANNELS, _FEW = 2**18, 64, 64
_ARGUMENTS, _IMAGES = 7, 4  # of a convolution; axes of a batch of images


class InDouble(TorchFunctionMode):
    """Within this context, casts to fewer bits, and functions of integers, give float64.

    A norm that is computed in float32 has rounding errors far above what a proof tolerates.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in _CASTS:
            return args[0].double()
        if func in _COMPLEX_CASTS:
            return args[0].to(torch.complex128)
        options = dict(kwargs or {})
        if func in _GROUPED and args[1].dim() == _EXPERTS and options.get("bias") is None:
            return _grouped(*args, **options)
        options = {name: _widened(value) for name, value in (kwargs or {}).items()}
        if func in _CONVOLUTIONS and not options and _is_narrow(*args):
            return _convolved(*args)
        result = func(*map(_widened, args), **options)
        if isinstance(result, Tensor) and result.dtype in _FEWER_BITS:
            return result if _reads_fewer_bits((*args, *options.values())) else result.double()
        return result


def _grouped(rows: Tensor, experts: Tensor, offs: Tensor, **_: object) -> Tensor:
    """Each expert's rows times its matrix; torch's own knows no float64.

    Parameters
    ----------
    rows : Tensor
        (rows, inputs), those of one expert after those of another.
    experts : Tensor
        (experts, inputs, outputs).
    offs : Tensor
        (experts,) the end of each expert's rows.
    """
    steps = [step for own in (rows, experts) for step in own.stride() if step != 1]
    if any(step % _ALIGNED for step in steps):
        raise RuntimeError("strides should be multiple of 16 bytes")  # as in float32
    ends = [0, *offs.tolist()]
    parts = [rows[a:b] @ own for a, b, own in zip(ends, ends[1:], experts, strict=False)]
    return torch.cat([*parts, rows.new_zeros(len(rows) - ends[-1], experts.shape[-1])])


def _is_narrow(*args: Any) -> bool:
    """Whether a convolution has many weights, few positions and nothing unusual about it."""
    if len(args) != _ARGUMENTS or not isinstance(args[4], tuple):
        return False
    x, weight, stride, groups = args[0], args[1], args[3], args[6]
    if not x.dim() == weight.dim() == _IMAGES or not x.dtype == weight.dtype == torch.float64:
        return False
    if x.shape[2] * x.shape[3] > _FEW * math.prod(stride):
        return False
    if groups == 1:
        return bool(x.shape[1] == weight.shape[1] and weight.numel() >= _MANY)
    return bool(_CHANNELS <= groups == x.shape[1] == len(weight) and weight.shape[1] == 1)


def _convolved(*args: Any) -> Tensor:
    """A convolution as one product for all images, and for all channels if it is depthwise."""
    x, weight, bias, stride, padding, dilation, groups = args
    columns = functional.unfold(x, weight.shape[2:], dilation, padding, stride)
    sides = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    shape = [(n + 2 * pad - gap * (k - 1) - 1) // step + 1 for n, k, step, pad, gap in sides]
    result: Tensor
    if groups == 1:
        found = weight.flatten(1) @ columns.transpose(0, 1).flatten(1)
        result = found.view(-1, len(x), *shape).transpose(0, 1)
    else:
        each = columns.view(len(x), groups, -1, columns.shape[-1])
        result = torch.einsum("bckp,ck->bcp", each, weight.flatten(1)).view(len(x), -1, *shape)
    return result.contiguous() if bias is None else result + bias[:, None, None]


def _reads_fewer_bits(values: Sequence[Any]) -> bool:
    """Whether a function had its few bits from a tensor, not from integers or the default."""
    return any(
        value.dtype in _FEWER_BITS
        if isinstance(value, Tensor)
        else isinstance(value, (list, tuple)) and _reads_fewer_bits(value)
        for value in values
    )


def _widened(value: Any) -> Any:
    if not isinstance(value, torch.dtype):
        return value
    if value in _FEWER_COMPLEX:
        return torch.complex128
    return torch.float64 if value in _FEWER_BITS else value
