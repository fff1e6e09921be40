"""The moments of the head's inputs, read from an ordinary train function by hooks.

In the head stage the head is zero, and a hook undoes whatever an optimizer does to it. At zero
logits the gradient of a cross-entropy is ``s (1/C - y)`` for each example, with a scale ``s > 0``
that depends on reduction, accumulation, loss scaling and class weights. Its largest entry is
``s / C``, since every example has a class with ``y = 0``: that gives ``s``, and ``y``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from flwr.app import ArrayRecord
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from fedma_flwr import protocol
from fedma_flwr.averaging.head_moments import upper_triangle
from fedma_flwr.protocol import ClientError

_ADVICE = (
    "reply with `fedma_flwr.head_moments(model, batches)` in this stage, or give the strategy "
    'head="trained"'
)


class HeadMomentsHook:
    """Sums over what a head sees in a head stage.

    Parameters
    ----------
    path : str
        The head's path in the model.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._gram: Tensor | None = None  # (d, d), float64
        self._cross = torch.zeros(0)  # (C, d + 1), float64
        self._rows = self._odd_rows = 0
        self._handles: list[RemovableHandle] = []

    def attach(self, model: nn.Module) -> None:
        """Freeze all but the head, keep all else in evaluation mode, and hook the head."""
        head = find_head(model, self.path)
        own = {id(parameter) for parameter in head.parameters(recurse=False)}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in own)
        # model.train() undoes eval(): dropout and running statistics must rest.
        others = [module for module in model.modules() if module is not head]
        self._handles = [module.register_forward_pre_hook(_evaluate) for module in others]
        self._handles.append(head.register_forward_pre_hook(_undo_steps))
        self._handles.append(head.register_forward_hook(self._watch))

    def detach(self) -> None:
        """Remove the hooks: a model may be used again."""
        for handle in self._handles:
            handle.remove()

    def _watch(self, head: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if output.requires_grad:
            features = as_rows(head, inputs[0].detach())
            output.register_hook(lambda gradient: self._read(features, as_rows(head, gradient)))

    def _read(self, features: Tensor, gradient: Tensor) -> None:
        """Add a batch: (n, d) features and the (n, C) gradient of the loss by the logits."""
        rounding = max(16 * torch.finfo(gradient.dtype).eps, 1e-5)
        gradient = gradient.detach().to(_precise(gradient))
        scale = gradient.amax(1) * gradient.shape[1]
        counted = gradient.abs().amax(1) > 0  # padding and ignored labels have no gradient
        fits = (gradient.sum(1).abs() <= rounding * scale) & scale.isfinite() & (scale > 0)
        self._odd_rows += int((counted & ~fits).sum())
        counted &= fits
        targets = 1 / gradient.shape[1] - gradient[counted] / scale[counted, None]
        self.add(features[counted], _sharp(targets, rounding))

    def add(self, features: Tensor, targets: Tensor) -> None:
        """Add n examples: (n, d) inputs of the head and (n, C) targets."""
        features = features.detach().to(_summed_in(features))
        targets = targets.to(features)
        counts = targets.sum(0)[:, None]
        gram = (features.T @ features).cpu()
        cross = torch.cat([targets.T @ features, counts], 1).cpu()
        if self._gram is None:  # batches are added up in float64
            self._gram = torch.zeros_like(gram, dtype=torch.float64)
            self._cross = torch.zeros_like(cross, dtype=torch.float64)
        self._gram.add_(gram)
        self._cross.add_(cross)
        self._rows += len(features)

    def moments(self) -> dict[str, Tensor]:
        """The moments of an average example, float32: ``head.gram`` and ``head.cross``.

        Raises
        ------
        ClientError
            If nothing has been seen, or a loss that is no cross-entropy.
        """
        if self._odd_rows:
            raise ClientError(
                "The head stage reads labels from the gradient of a cross-entropy, but "
                f"{self._odd_rows} examples have a loss that is none: {_ADVICE}."
            )
        if not self._rows or self._gram is None:
            raise ClientError(
                "The head stage has seen no example: no loss of the model that `load_model` "
                f"returned was differentiated. Train that model as in every stage; else {_ADVICE}."
            )
        gram = upper_triangle(self._gram / self._rows)
        tensors = {protocol.GRAM_KEY: gram, protocol.CROSS_KEY: self._cross / self._rows}
        return {name: tensor.to(torch.float32) for name, tensor in tensors.items()}


_HOOK: ContextVar[HeadMomentsHook | None] = ContextVar("_HOOK", default=None)


@contextmanager
def collecting(path: str) -> Iterator[HeadMomentsHook]:
    """Within this context `load_model` hooks the head, which is at `path` in the model."""
    hook = HeadMomentsHook(path)
    token = _HOOK.set(hook)
    try:
        yield hook
    finally:
        _HOOK.reset(token)
        hook.detach()


def current_hook() -> HeadMomentsHook | None:
    """The hook of the head stage that this train function works for; None outside of one."""
    return _HOOK.get()


def head_moments(
    model: nn.Module,
    batches: Iterable[tuple[Any, Tensor]],
    *,
    head: str | None = None,
) -> ArrayRecord:
    """The moments of a head's inputs, for the reply to a head stage.

    For train functions whose labels cannot be read from a gradient: compiled models, replicas,
    losses that are no cross-entropy. `fedma_mod` takes it in place of the model's arrays.

    Parameters
    ----------
    model : nn.Module
        What `load_model` returned.
    batches : iterable of (inputs, labels)
        Inputs: one tensor, or a tuple or dict of arguments. Labels: class numbers (negative ones
        are passed over), or C probabilities each.
    head : str, optional
        The head's path in the model. None: that of the head stage.

    Returns
    -------
    ArrayRecord
        ``head.gram``, (d (d + 1) / 2,), and ``head.cross``, (C, d + 1), of an average example.

    Raises
    ------
    ClientError
        Outside a head stage without `head`, or without an example.
    """
    stage = current_hook()
    if head is None and stage is None:
        raise ClientError("head_moments: this is no head stage; name the layer, as in head='fc'.")
    model = _unwrapped(model)
    sums = HeadMomentsHook(stage.path if head is None and stage is not None else str(head))
    layer = find_head(model, sums.path)
    device = next(layer.parameters()).device
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for inputs, labels in batches:
                _call(model, inputs, device)
                features = torch.cat([as_rows(layer, rows) for rows in seen])
                seen.clear()
                kept, targets = _targets(labels.to(device), layer)
                sums.add(features[kept], targets)
    finally:
        handle.remove()
        model.train(training)
    return protocol.to_arrays(sums.moments())


def find_head(model: nn.Module, path: str) -> nn.Module:
    """The layer at a path, which must be linear.

    Raises
    ------
    ClientError
        If there is none, or if it is no linear layer and no 1 x 1 convolution.
    """
    try:
        layer = _unwrapped(model).get_submodule(path)
    except AttributeError as error:
        raise ClientError(f"The model has no layer {path!r}, the strategy's head.") from error
    kernel = getattr(layer, "kernel_size", None)
    if isinstance(layer, nn.Linear) or (isinstance(kernel, tuple) and set(kernel) == {1}):
        return layer
    raise ClientError(
        f"The head {path!r} is a {type(layer).__name__}; only a linear layer can be solved: give "
        'the strategy head="trained".'
    )


def as_rows(head: nn.Module, tensor: Tensor) -> Tensor:
    """The head's inputs, or outputs, one a row: (n, numbers)."""
    if not isinstance(head, nn.Linear):  # (batch, channels, ...)
        tensor = tensor.movedim(1, -1)
    return tensor.reshape(-1, tensor.shape[-1])


def _unwrapped(model: nn.Module) -> nn.Module:
    """The module inside torch.compile's or DataParallel's."""
    while inner := getattr(model, "_orig_mod", None) or (
        model.module if isinstance(model, nn.DataParallel) else None
    ):
        model = inner
    return model


def _evaluate(module: nn.Module, _: Any) -> None:
    module.training = False


def _undo_steps(head: nn.Module, _: Any) -> None:
    with torch.no_grad():
        for parameter in head.parameters(recurse=False):
            if bool(parameter.any()):
                parameter.zero_()


def _precise(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def _summed_in(tensor: Tensor) -> torch.dtype:
    """The dtype of a batch's products: on GPUs, float32 may be rounded to ten bits (TF32)."""
    if tensor.device.type == "cpu" and tensor.dtype != torch.float64:
        return torch.float32
    return _precise(tensor)


def _sharp(targets: Tensor, rounding: float) -> Tensor:
    """Targets without the gradient's rounding: exactly 0 and 1 where they nearly are."""
    hard = functional.one_hot(targets.argmax(1), targets.shape[1]).to(targets)
    near = (targets - hard).abs().amax(1, keepdim=True) <= targets.shape[1] * rounding
    return torch.where(near, hard, targets.clamp_min(0.0))


def _call(model: nn.Module, inputs: Any, device: torch.device) -> None:
    if isinstance(inputs, dict):
        model(**{name: value.to(device) for name, value in inputs.items()})
    elif isinstance(inputs, tuple | list):
        model(*(value.to(device) for value in inputs))
    else:
        model(inputs.to(device))


def _targets(labels: Tensor, head: nn.Module) -> tuple[Tensor, Tensor]:
    """Which rows count, and their targets, (n, C)."""
    outputs = next(head.parameters()).shape[0]
    if labels.is_floating_point():
        rows = as_rows(head, labels)
        return torch.ones(len(rows), dtype=torch.bool, device=labels.device), rows
    flat = labels.reshape(-1)
    kept = flat >= 0
    if bool((flat >= outputs).any()):
        raise ClientError(
            f"head_moments: labels reach {int(flat.max())}, but the head has {outputs} outputs."
        )
    return kept, functional.one_hot(flat[kept], outputs)
