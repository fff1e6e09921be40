"""Run a model without chance: random numbers that have no order of their own are all alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# What is drawn entry by entry; every other random operator (a permutation, say) is left alone.
_NOISE = frozenset(
    {
        *("rand", "randn", "rand_like", "randn_like", "uniform", "uniform_", "normal", "normal_"),
        *("exponential", "exponential_", "log_normal_", "cauchy_", "geometric_", "random_"),
    }
)
_MASKS = frozenset({"bernoulli", "bernoulli_"})
_MEANS = frozenset({"poisson", "_standard_gamma"})
_NORMAL = 0.7  # in standard deviations
# Fake quantisation, by whether a mask is returned as well.
_ROUNDED = {
    "fused_moving_avg_obs_fake_quant": False,
    "_fused_moving_avg_obs_fq_helper": True,
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams": True,
    "fake_quantize_per_tensor_affine_cachemask": True,
    "fake_quantize_per_channel_affine_cachemask": True,
}


class WithoutChance(TorchDispatchMode):
    """Within this context, random numbers do not tell positions apart.

    Noise is one number for all entries, masks keep everything, random slopes are their mean. A
    permutation of units then changes nothing if it does not change the distribution. Numbers that
    follow a seed set by the model's own code are constants: they stay as they are. Fake
    quantisation, which knows no float64, is left out.

    Attributes
    ----------
    met : bool
        Whether there was anything to do.
    """

    def __init__(self) -> None:
        super().__init__()
        self.met = False
        self._state = torch.get_rng_state()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        name = func.overloadpacket.__name__
        if name in _ROUNDED:
            self.met = True
            return (args[0], torch.ones_like(args[0])) if _ROUNDED[name] else args[0]
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **options)
        self.met = True
        seeded = not torch.equal(torch.get_rng_state(), self._state)
        try:
            if seeded or options.get("generator") is not None:
                return func(*args, **options)
            return _levelled(name, func, args, options)
        finally:
            self._state = self._state if seeded else torch.get_rng_state()


def _levelled(
    name: str, func: Callable[..., Any], args: Sequence[Any], options: dict[str, Any]
) -> Any:
    """What a random operator gives, without an order."""
    if name == "normal" and any(isinstance(value, Tensor) for value in args[:2]):
        mean, deviation = (*args, *options.values())[:2]
        return mean + deviation * _NORMAL
    if name in _MEANS:
        return args[0].clone()
    if name == "rrelu_with_noise":
        return func(*args[:4], False)
    if name == "native_dropout":
        return func(*args[:2], False)
    result = func(*args, **options)
    if name in _NOISE and result.numel():
        result.fill_(result.flatten()[0].clone())
    elif name in _MASKS:
        result.fill_(1)
    return result
