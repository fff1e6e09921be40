"""What kind a loss is, read from its derivatives by the head's outputs.

The head's outputs are zero. With the gradient ``g`` and the Hessian ``H`` there:

- a cross-entropy over the outputs has ``H 1 = 0``: adding a number to all of them changes nothing;
- a squared error has a diagonal ``H`` and no higher derivatives. Its minimum, the targets, is at
  ``-g / h``, whatever the loss is scaled by (reduction, accumulation, AMP, units);
- a cross-entropy of sigmoids has a diagonal ``H``, no third derivative and a fourth of ``-h / 2``.
  ``-g / h`` is where Newton's method goes from zero: 2 or -2.

Whatever else has a diagonal ``H`` is a loss of its own, and is left alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fedma_flwr.client_heads import as_rows

CLASSES, VALUES, SIGMOIDS, OTHER = "classes", "values", "sigmoids", "other"
_ROUGH = {torch.float16: 3e-2, torch.bfloat16: 3e-2}  # by dtype, what is taken for rounding
_ROUNDING = 1e-3
_MOST_OPEN = 64  # outputs that wait for their loss


@dataclass(eq=False)
class SeenOutput:
    """An output of the head, and what is known of its loss.

    Parameters
    ----------
    output : Tensor or None
        None once its loss has come.
    head : nn.Module
        Whose it is.
    curvature : Tensor or None
        The second derivative of the loss by each entry, if that determines the targets.
    """

    output: Tensor | None
    head: nn.Module
    curvature: Tensor | None = None


class Losses(TorchFunctionMode):
    """Within this context the losses of a head's outputs are looked at before `backward`.

    Attributes
    ----------
    kind : str
        What the losses are; empty while that is not known.
    looking : bool
        Whether gradients are being taken here, which are nobody's.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kind = ""
        self.looking = False
        self._open: list[SeenOutput] = []

    def expect(self, head: nn.Module, output: Tensor) -> SeenOutput:
        """Wait for the loss of an output of the head."""
        seen = SeenOutput(output, head)
        self._open = [*self._open[1 - _MOST_OPEN :], seen]
        return seen

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Look at a loss when it is differentiated."""
        kwargs = kwargs or {}
        if func is Tensor.backward and self.kind not in (CLASSES, OTHER):
            along = kwargs.get("gradient", args[1] if len(args) > 1 else None)
            self.looking = True
            try:
                self._look(args[0], along)
            except (RuntimeError, NotImplementedError):  # it cannot be differentiated twice
                self._open.clear()
            finally:
                self.looking = False
        return func(*args, **kwargs)

    def _look(self, loss: Tensor, along: Tensor | None) -> None:
        outputs = [seen.output for seen in self._open if seen.output is not None]
        if not outputs or not loss.requires_grad:
            return
        gradients = torch.autograd.grad(
            loss, outputs, along, retain_graph=True, create_graph=True, allow_unused=True
        )
        still_open = []
        for seen, gradient in zip(self._open, gradients, strict=True):
            if gradient is None or seen.output is None:  # another loss will have it
                still_open.append(seen)
                continue
            curvature = _derivative(gradient, seen.output)
            self.kind = self.kind or _kind(seen, gradient, curvature)
            if self.kind in (VALUES, SIGMOIDS):
                seen.curvature = curvature.detach()
            seen.output = None
        self._open = still_open


def _derivative(of: Tensor, by: Tensor, along: Tensor | None = None) -> Tensor:
    """The derivative of a sum (weighted with `along`), to be differentiated again."""
    found: Tensor | None = None
    if of.requires_grad:
        along = torch.ones_like(of) if along is None else along
        (found,) = torch.autograd.grad(
            of, by, along, retain_graph=True, create_graph=True, allow_unused=True
        )
    return torch.zeros_like(by) if found is None else found


def _kind(seen: SeenOutput, gradient: Tensor, curvature: Tensor) -> str:
    """What the loss is; empty if nothing can be told from this batch."""
    rounding = _ROUGH.get(gradient.dtype, _ROUNDING)
    slope, bend = _largest(gradient), _largest(curvature)
    if not 0 < slope + bend < float("inf"):
        return ""
    # Of huge values the curvature is small as well, but their gradients sum up to nothing nowhere.
    sums = as_rows(seen.head, gradient.detach()).sum(1)
    if bend <= rounding * slope and _largest(sums) <= rounding * slope:
        return CLASSES
    return OTHER if seen.output is None else _of_values(gradient, curvature, seen.output, rounding)


def _of_values(gradient: Tensor, curvature: Tensor, output: Tensor, rounding: float) -> str:
    """What a loss is that is none over classes."""
    bend = _largest(curvature)
    generator = torch.Generator().manual_seed(0)
    signs = 2 * torch.randint(2, output.shape, generator=generator).to(output) - 1
    mixed = _derivative(gradient, output, signs) - curvature * signs
    known = curvature.detach() > 0
    if not bool(known.any()) or bool((gradient.detach()[~known] != 0).any()):
        return OTHER
    if _largest(mixed) > rounding * bend:  # outputs that have to do with one another
        return OTHER
    reach = _largest(gradient.detach()[known] / curvature.detach()[known])
    third = _derivative(curvature, output)
    if _largest(third) * reach > rounding * bend:
        return OTHER
    fourth = _derivative(third, output).detach()
    if _largest(fourth) * reach**2 <= rounding * bend:
        return VALUES
    is_sigmoid = _largest(fourth + curvature.detach() / 2) <= rounding * bend
    return SIGMOIDS if is_sigmoid and reach <= 2 * (1 + rounding) else OTHER


def _largest(tensor: Tensor) -> float:
    return float(tensor.detach().abs().max()) if tensor.numel() else 0.0
