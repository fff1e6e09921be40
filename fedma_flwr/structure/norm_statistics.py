"""Running statistics of normalisation layers: fit them to drawn weights, differentiate by them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fedma_flwr.structure.axes import SpecError
from fedma_flwr.structure.subject import Subject

# Variances below this are raised to it: dividing by less would magnify rounding errors.
_LEAST_VARIANCE = 1e-4


def fit_statistics(subject: Subject, generator: torch.Generator) -> None:
    """Give every batch norm statistics near those of what it reads, in the order of the calls.

    Parameters
    ----------
    subject : Subject
        The model under test, at drawn weights and inputs; its buffers are overwritten.
    generator : torch.Generator
        Where the deviations from the exact statistics come from. With exact ones, or with those
        that a layer would have if no other deviated, deep networks saturate: what is 10 % off at
        one layer is many standard deviations off some layers later.
    """
    fitted: set[nn.Module] = set()

    def fit(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        if layer not in fitted:
            fitted.add(layer)
            _fit(layer, args[0], generator)

    hooks = [
        module.register_forward_pre_hook(fit)
        for module in subject.model.modules()
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_var is not None
    ]
    try:
        subject.run()
    except SpecError:
        return  # the caller finds out whether the model runs
    finally:
        for hook in hooks:
            hook.remove()


def _fit(layer: nn.Module, x: Tensor, generator: torch.Generator) -> None:
    # (channels, values); instance norms also take inputs without a batch
    channels = layer.get_buffer("running_var").numel()
    values = (x if x.shape[0] == channels != x.shape[1] else x.transpose(0, 1)).flatten(1)
    variance, mean = torch.var_mean(values, 1, correction=0)
    variance = variance.clamp(min=_LEAST_VARIANCE)
    spread, shift = (
        torch.rand(mean.shape, generator=generator, dtype=mean.dtype) - 0.5 for _ in range(2)
    )
    layer.get_buffer("running_var").copy_(variance * (1 + 0.5 * spread))
    layer.get_buffer("running_mean").copy_(mean + 0.5 * shift * variance.sqrt())


class DifferentiableStatistics(TorchFunctionMode):
    """Within this context, outputs can be differentiated by running statistics.

    Torch's own batch norm has no derivative by them.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        written_out = _WRITTEN_OUT.get(func, func)
        return written_out(*args, **(kwargs or {}))


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`functional.batch_norm`, written out where it uses the running statistics."""
    if training or running_mean is None or running_var is None:
        return functional.batch_norm(
            input, running_mean, running_var, weight, bias, training, momentum, eps
        )
    shape = (-1, *[1] * (input.dim() - 2))
    scale = (running_var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -running_mean * scale if bias is None else bias - running_mean * scale
    return input * scale.view(shape) + shift.view(shape)


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`functional.instance_norm`: with running statistics, a batch norm."""
    norm = functional.instance_norm if use_input_stats else _batch_norm
    rest = (use_input_stats, momentum, eps)
    return norm(input, running_mean, running_var, weight, bias, *rest)


_WRITTEN_OUT: dict[Callable[..., Any], Callable[..., Any]] = {
    functional.batch_norm: _batch_norm,
    functional.instance_norm: _instance_norm,
}
