"""Running statistics on the client: estimated anew where the averaged weights see data.

Averaged units vary less than the units that they are made of, so the statistics that clients
kept for their own units are wrong for the averaged ones (Jordan et al., "REPAIR", 2022).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fedma_flwr.structure.state_dict_names import RUNNING_MEAN, RUNNING_VARIANCE


class StatisticsHook:
    """Forward hook of a batch norm that writes the statistics of its inputs to its buffers.

    ``running_mean`` and ``running_var`` become the mean and the (unbiased) variance, channel by
    channel, of everything that the layer has seen in training mode since the hook was made,
    whatever its momentum. What the layer itself computes stays as it is.
    """

    def __init__(self) -> None:
        self._count = 0
        self._mean = torch.zeros(())
        self._squares = torch.zeros(())  # sums of squared deviations from the mean

    def __call__(
        self, module: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor], _: Tensor
    ) -> None:
        """Add one batch, (batch, channels, ...)."""
        if not module.training:
            return
        batch = (args[0] if args else kwargs["input"]).detach()
        if batch.dtype.itemsize < 4:  # half precision cannot hold sums of squares
            batch = batch.float()
        axes = [axis for axis in range(batch.dim()) if axis != 1]
        variance, mean = torch.var_mean(batch, axes, correction=0)  # (channels,)
        precise = torch.float32 if mean.device.type == "mps" else torch.float64
        self._add(batch.numel() // batch.shape[1], mean.to(precise), variance.to(precise))
        _write(module, RUNNING_MEAN, self._mean)
        _write(module, RUNNING_VARIANCE, self._squares / max(self._count - 1, 1))

    def _add(self, count: int, mean: Tensor, variance: Tensor) -> None:
        """Chan, Golub and LeVeque's update (1983)."""
        total = self._count + count
        delta = mean - self._mean.to(mean.device)
        between = delta**2 * (self._count * count / total)
        self._squares = self._squares.to(mean.device) + variance * count + between
        self._mean = mean - delta * (self._count / total)
        self._count = total


def _write(module: nn.Module, name: str, value: Tensor) -> None:
    buffer: Tensor = getattr(module, name)
    if getattr(module, "_is_replica", False):  # of DataParallel, which shares the model's buffers
        buffer.copy_(value)
    else:  # the pass's derivatives may need what it had
        setattr(module, name, value.to(buffer, copy=True))


def estimate_statistics(model: nn.Module, names: Sequence[str]) -> None:
    """Let the batch norms of a model estimate their statistics anew while it is trained.

    Parameters
    ----------
    model : nn.Module
        The model.
    names : sequence of str
        Statistics to estimate. Those of modules that are no batch norm are left to the module.
    """
    for prefix, module in model.named_modules():
        dot = f"{prefix}." if prefix else ""
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and f"{dot}{RUNNING_MEAN}" in names:
            module.register_forward_hook(StatisticsHook(), with_kwargs=True)
