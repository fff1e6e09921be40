"""Running statistics of normalisation layers: fit them to drawn weights, differentiate by them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fedma_flwr.structure.proving.model_in_proof import ModelInProof

# Variances below this are raised to it: dividing by less would magnify rounding errors.
_LEAST_VARIANCE = 1e-4


def has_statistics(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer that keeps running statistics."""
    return isinstance(module, nn.modules.batchnorm._NormBase) and module.running_var is not None


def fit_statistics(model: ModelInProof, generator: torch.Generator) -> None:
    """Give every batch norm statistics near those of what it reads, in the order of the calls.

    Parameters
    ----------
    model : ModelInProof
        The model in proof, at drawn weights and inputs; its buffers are overwritten.
    generator : torch.Generator
        Where the deviations from the exact statistics come from. With exact ones, or with those
        that a layer would have if no other deviated, deep networks saturate: what is 10 % off at
        one layer is many standard deviations off some layers later.

    Raises
    ------
    SpecError
        If the model does not run.
    """
    fitted: set[nn.Module] = set()

    def fit(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        if layer not in fitted:
            fitted.add(layer)
            _fit(layer, args[0], generator)

    hooks = [
        module.register_forward_pre_hook(fit)
        for module in model.module.modules()
        if has_statistics(module)
    ]
    try:
        model.run()
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
        options = dict(kwargs or {})
        if func in _SIGNATURES:
            bound = _SIGNATURES[func].bind(*args, **options)
            bound.apply_defaults()
            own = bound.arguments
            if own["running_mean"] is not None and not own[_USES_INPUT[func]]:
                return _written_out(own)
        return func(*args, **options)


_USES_INPUT: dict[Callable[..., Any], str] = {
    functional.batch_norm: "training",
    functional.instance_norm: "use_input_stats",
}
_SIGNATURES = {func: inspect.signature(func) for func in _USES_INPUT}


def _written_out(own: Mapping[str, Any]) -> Tensor:
    """A batch norm, or an instance norm, by running statistics; its arguments by name."""
    x, mean, weight, bias = (own[n] for n in ("input", "running_mean", "weight", "bias"))
    shape = (-1, *[1] * (x.dim() - 2))
    scale = (own["running_var"] + own["eps"]).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    result: Tensor = x * scale.view(shape) + shift.view(shape)
    return result
