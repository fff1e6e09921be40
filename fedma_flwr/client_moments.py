"""The moments of the head's inputs, read from an ordinary train function by hooks.

In the head stage the head is zero, and a hook undoes whatever an optimizer does to it. At zero
logits the gradient of a cross-entropy is ``s (1/C - y)`` for each example, with a scale ``s > 0``
that depends on reduction, accumulation, loss scaling and class weights. Its largest entry is
``s / C``, since every example has a class with ``y = 0``: that gives ``s``, and ``y``.

Of a squared error the gradient is ``-s y``: there the second derivative gives ``s``; see `Losses`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from flwr.app import ArrayRecord
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from fedma_flwr import protocol
from fedma_flwr.averaging.head_moments import NO_TARGETS
from fedma_flwr.client_heads import as_rows, count_items, find_head, unwrapped
from fedma_flwr.client_losses import SIGMOIDS, Losses, SeenOutput
from fedma_flwr.client_moment_sums import MomentSums, Reference, precise
from fedma_flwr.client_narrower import NarrowerModels
from fedma_flwr.client_passes import passes
from fedma_flwr.client_privacy import refuse_bare_moments
from fedma_flwr.protocol import ClientError

ADVICE = (
    "reply with `fedma_flwr.head_moments(model, batches)` in this stage, or give the strategy "
    'head="trained"'
)


#: What a sigmoid's output is regressed on for a label of 1, and with its sign changed for 0: as far
#: apart as two classes' outputs, see `HeadSolver.scale`. From zero, Newton's step goes to 2.
SIGMOID_VALUE = 5.0


class HeadMomentsHook:
    """Sums over what a head sees in a head stage.

    Parameters
    ----------
    path : str
        The head's path in the model.
    with_expected : bool (default: False)
        Whether what the head expects, as the server sends it, is summed up as well.
    narrower : NarrowerModels, optional
        Parts of the model whose heads' inputs are summed up behind its own.
    """

    def __init__(
        self,
        path: str,
        with_expected: bool = False,
        narrower: NarrowerModels | None = None,
    ) -> None:
        self.path = path
        self.narrower = narrower or NarrowerModels(None, (), path)
        self._with_expected = with_expected
        self.reference: Reference | None = None
        self._sums = MomentSums()
        self._pooled: MomentSums | None = MomentSums()  # until positions turn out to differ
        self.losses = Losses()
        self._odd_rows = 0
        self._handles: list[RemovableHandle] = []
        self._trainable: list[tuple[nn.Parameter, bool]] = []

    def attach(self, model: nn.Module) -> None:
        """Freeze all but the head, keep all else in evaluation mode, and hook the head."""
        head = find_head(model, self.path)
        self.detach()
        if self._with_expected:
            self._start_from(Reference(head))
        own = {id(parameter) for parameter in head.parameters(recurse=False)}
        self._trainable = [(p, p.requires_grad) for p in model.parameters()]
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in own)
        # model.train() undoes eval(): dropout and running statistics must rest.
        others = [module for module in model.modules() if module is not head]
        self._handles = [module.register_forward_pre_hook(_evaluate) for module in others]
        self._handles += self.narrower.watch(model)
        self._handles.append(head.register_forward_pre_hook(_undo_steps))
        self._handles.append(head.register_forward_hook(self._watch))

    def _start_from(self, reference: Reference) -> None:
        self.reference = reference
        self._sums, self._pooled = MomentSums(reference), MomentSums(reference)

    def detach(self) -> None:
        """Remove the hooks and let be trained what was: a model may be used again."""
        for handle in self._handles:
            handle.remove()
        for parameter, trainable in self._trainable:
            parameter.requires_grad_(trainable)

    def _watch(self, head: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        refuse_bare_moments(head)
        if output.requires_grad:
            features = self.narrower.joined(as_rows(head, inputs[0].detach()))
            items, seen = count_items(inputs[0]), self.losses.expect(head, output)

            def read(gradient: Tensor) -> None:
                if not self.losses.looking:
                    self._read(features, as_rows(head, gradient), items, seen)

            output.register_hook(read)

    def _read(self, features: Tensor, gradient: Tensor, items: int, seen: SeenOutput) -> None:
        """Add a batch: (n, d) features and the (n, C) gradient of the loss by the logits."""
        gradient = gradient.detach().to(precise(gradient))
        if not bool(gradient.isfinite().all()):
            return  # a scaled loss overflowed: its step would be skipped as well
        if seen.curvature is not None:
            curvature = as_rows(seen.head, seen.curvature).to(gradient)
            self._read_values(features, gradient, curvature, items)
            return
        self._sums.add(*self._counted(features, gradient), items)
        if self._pooled is None or items >= len(gradient):
            return
        # Logits that are averaged over an example's positions have one gradient for all of them.
        by_item = gradient.reshape(items, -1, gradient.shape[1])
        if bool((by_item == by_item[:, :1]).all()):
            mean = features.reshape(items, by_item.shape[1], -1).mean(1)
            self._pooled.add(*self._counted(mean, by_item[:, 0]), items)
        else:
            self._pooled = None

    def _read_values(
        self, features: Tensor, gradient: Tensor, curvature: Tensor, items: int
    ) -> None:
        """Add a batch of a loss that has a minimum of its own for each output."""
        if not self._sums.rows:
            self._sums, self._pooled = MomentSums(values=True), None
        # Padding has no curvature. Outputs of which one alone counts would need squares of its own.
        targets = -gradient / curvature.where(curvature > 0, 1.0)
        if self.losses.kind == SIGMOIDS:
            targets = targets * (SIGMOID_VALUE / 2)
        counted = (curvature > 0).any(1)
        odd = counted & ~(curvature > 0).all(1)
        self._odd_rows += int(odd.sum())
        counted &= ~odd
        self._sums.add(features[counted], targets[counted], items)

    def _counted(self, features: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The rows that have a label, and their targets."""
        rounding = max(16 * torch.finfo(gradient.dtype).eps, 1e-5)
        scale = gradient.amax(1) * gradient.shape[1]
        counted = gradient.abs().amax(1) > 0  # padding and ignored labels have no gradient
        fits = (gradient.sum(1).abs() <= rounding * scale) & (scale > 0)
        self._odd_rows += int((counted & ~fits).sum())
        counted &= fits
        targets = 1 / gradient.shape[1] - gradient[counted] / scale[counted, None]
        return features[counted], _sharp(targets, rounding)

    def moments(self) -> dict[str, Tensor]:
        """The moments of an average example, float32: ``head.gram``, ``head.cross``.

        Of values ``head.squares`` too.

        Raises
        ------
        ClientError
            If nothing has been seen, or a loss that is neither a cross-entropy nor a squared error.
        """
        if self._odd_rows:
            raise ClientError(
                f"{NO_TARGETS} of a cross-entropy or a squared error, but the loss is neither (of "
                f"{self._odd_rows} examples). If it is one in another form, {ADVICE}."
            )
        if not self._sums.rows:
            raise ClientError(
                "The head stage has seen no example: no loss of the model that `load_model` "
                f"returned was differentiated. Train that model as in every stage; else {ADVICE}."
            )
        pooled = self._pooled if self._pooled is not None and self._pooled.rows else None
        return (pooled or self._sums).moments()


_HOOK: ContextVar[HeadMomentsHook | None] = ContextVar("_HOOK", default=None)


@contextmanager
def collecting(
    path: str, with_expected: bool = False, narrower: NarrowerModels | None = None
) -> Iterator[HeadMomentsHook]:
    """Within this context `load_model` hooks the head, which is at `path` in the model."""
    hook = HeadMomentsHook(path, with_expected, narrower)
    token = _HOOK.set(hook)
    try:
        with hook.losses if path else nullcontext():
            yield hook
    finally:
        _HOOK.reset(token)
        hook.detach()


def current_hook() -> HeadMomentsHook | None:
    """The hook of the head stage that this train function works for; None outside of one."""
    return _HOOK.get()


def find_layer(caller: str, model: nn.Module, head: str | None) -> nn.Module:
    """The head at a path, or that of the head stage; ClientError if there is neither."""
    stage = current_hook()
    if head is None and stage is None:
        raise ClientError(f"{caller}: this is no head stage; name the layer, as in head='fc'.")
    return find_head(model, stage.path if head is None and stage is not None else str(head))


def head_moments(
    model: nn.Module,
    batches: Iterable[tuple[Any, Tensor]],
    *,
    head: str | None = None,
    values: bool = False,
) -> ArrayRecord:
    """The moments of a head's inputs, for the reply to a head stage.

    For train functions whose targets cannot be read from a gradient: compiled models, replicas,
    losses that are neither a cross-entropy nor a squared error. `fedma_mod` takes it in place of
    the model's arrays.

    Parameters
    ----------
    model : nn.Module
        What `load_model` returned.
    batches : iterable of (inputs, labels)
        Inputs: one tensor, or a tuple or dict of arguments. Labels: class numbers (negative ones
        are passed over), or C probabilities each.
    head : str, optional
        The head's path in the model. None: that of the head stage.
    values : bool (default: False)
        Whether labels are the values that the C outputs are to come near to, (n, C), or (n,) for
        one output, as with a squared error.

    Returns
    -------
    ArrayRecord
        ``head.gram``, (d (d + 1) / 2,), and ``head.cross``, (C, d + 1), of an average example; in
        a head stage that asks for it ``head.expected`` too, as large as ``head.cross``. With
        `values` ``head.cross`` is (C + 1, d + 1), and there is ``head.squares``, (C,).

    Raises
    ------
    ClientError
        Outside a head stage without `head`, or without an example.
    """
    stage, layer = current_hook(), find_layer("head_moments", model, head)
    sums = MomentSums(None if stage is None else stage.reference, values=values)
    model = unwrapped(model)
    for seen in passes(model, layer, batches, values=values):
        features = seen.features if stage is None else stage.narrower.joined(seen.features)
        sums.add(features[seen.kept], seen.targets, seen.items)
    if not sums.rows:
        raise ClientError("head_moments: there is no example in `batches`.")
    return protocol.to_arrays(sums.moments())


def _evaluate(module: nn.Module, _: Any) -> None:
    module.training = False


def _undo_steps(head: nn.Module, _: Any) -> None:
    with torch.no_grad():
        for parameter in head.parameters(recurse=False):
            if bool(parameter.any()):
                parameter.zero_()


def _sharp(targets: Tensor, rounding: float) -> Tensor:
    """Targets without the gradient's rounding: exactly 0 and 1 where they nearly are."""
    hard = functional.one_hot(targets.argmax(1), targets.shape[1]).to(targets)
    near = (targets - hard).abs().amax(1, keepdim=True) <= targets.shape[1] * rounding
    return torch.where(near, hard, targets.clamp_min(0.0))
