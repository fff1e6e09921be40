"""Narrower models that are part of a client's: what enters their heads, beside its own.

A client that is wider than others measures their models' features too, for the same examples. That
tells how wider features follow from narrower ones, and gives every width's head all examples there
are. Nothing is trained, and a narrower model is small beside the client's own.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from logging import INFO
from typing import Any

import torch
from flwr.supercore import log
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fedma_flwr.client_heads import as_rows, find_head, unwrapped
from fedma_flwr.protocol import Assignments
from fedma_flwr.structure import PermutationSpec, resize
from fedma_flwr.structure.wrapped_models import under_names


class NarrowerModels:
    """Copies of parts of a model, which see what it sees.

    Parameters
    ----------
    spec : PermutationSpec or None
        Of what the client holds.
    parts : sequence of dict of str to Tensor
        For each narrower model the (n,) units that it has of the client's, by group.
    head : str
        The head's path in the model.
    """

    def __init__(
        self, spec: PermutationSpec | None, parts: Sequence[Assignments], head: str
    ) -> None:
        self._spec, self._parts, self._head = spec, list(parts), head
        self._models: list[nn.Module] = []
        self._seen: list[list[Tensor]] = []
        self._joins: bool | None = None  # whether the first batch was seen by them as well

    def build(self, model: nn.Module) -> None:
        """Copy the parts out of a model, before anything in it is frozen or hooked."""
        self._models, self._seen, self._joins = [], [], None
        if self._spec is None:
            return
        try:
            for units in self._parts:
                self._models.append(_part(unwrapped(model), self._spec, units))
                self._seen.append([])
        except Exception as error:  # a model that cannot be copied is measured without
            log(INFO, "Narrower models are not measured: %s: %s", type(error).__name__, error)
            self._models, self._seen = [], []

    def watch(self, model: nn.Module) -> list[RemovableHandle]:
        """Show the copies whatever the model is shown, until the handles are removed."""
        handles = [model.register_forward_pre_hook(self._show, with_kwargs=True)]
        for part, seen in zip(self._models, self._seen, strict=True):
            head = find_head(part, self._head)
            handles.append(head.register_forward_pre_hook(_collect(head, seen)))
        return handles if self._models else []

    @torch.no_grad()
    def _show(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        like = next(model.parameters())
        for part, seen in zip(self._models, self._seen, strict=True):
            seen.clear()
            part.to(like.device)(*args, **kwargs)

    def joined(self, features: Tensor) -> Tensor:
        """A batch's (n, d) features, and behind them those of the narrower models."""
        rows = [torch.cat(seen) for seen in self._seen if seen]
        fits = len(rows) == len(self._models) and all(len(r) == len(features) for r in rows)
        self._joins = fits if self._joins is None else self._joins
        if not self._models or not self._joins or not fits:
            # Not called as a whole: measured without them from the first batch on.
            if self._joins and not fits:
                raise RuntimeError("the model's parts were not called as the model was before")
            return features
        return torch.cat([features, *(r.to(features) for r in rows)], dim=1)


def _part(model: nn.Module, spec: PermutationSpec, units: Assignments) -> nn.Module:
    """A copy of a model that has only some of its units."""
    part = copy.deepcopy(model)
    state = {n: t for n, t in part.state_dict().items() if isinstance(t, Tensor)}
    named = under_names(state, spec.axes)
    narrow = {**named, **spec.select({n: named[n] for n in named if n in spec.axes}, units)}
    narrow = under_names(narrow, state)
    resize(part, narrow)
    part.load_state_dict(narrow)
    return part.eval().requires_grad_(False)


def _collect(head: nn.Module, seen: list[Tensor]) -> Any:
    def collect(_: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(as_rows(head, args[0].detach()))

    return collect
