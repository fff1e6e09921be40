"""Run a model in float64 throughout, also where its code asks for fewer bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_FEWER_BITS = frozenset({torch.float32, torch.float16, torch.bfloat16})
_CASTS = frozenset({Tensor.float, Tensor.half, Tensor.bfloat16})


class InDouble(TorchFunctionMode):
    """Within this context, casts to fewer bits and functions that take no tensors give float64.

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
        options = {name: _widened(value) for name, value in (kwargs or {}).items()}
        result = func(*map(_widened, args), **options)
        makes = not any(isinstance(value, Tensor) for value in (*args, *options.values()))
        if makes and isinstance(result, Tensor) and result.dtype in _FEWER_BITS:
            return result.double()
        return result


def _widened(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value in _FEWER_BITS else value
