"""Growability: zero-padded units must leave the output unchanged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from fedma_flwr.structure.proving.model_in_proof import ModelInProof, relative_change
from fedma_flwr.structure.refusals import first_line
from fedma_flwr.structure.resizing import resize


def why_not_growable(
    model: ModelInProof, tolerance: float, generator: torch.Generator
) -> dict[str, str]:
    """For every group that must keep its width, why.

    Parameters
    ----------
    model : ModelInProof
        The model in proof, at weights on which its output depends.
    tolerance : float
        Relative change that counts as none.
    generator : torch.Generator
        Where the places of the new units come from.

    Notes
    -----
    If any two groups may grow one without the other, a few runs show it: run ``k`` lets the groups
    grow whose number has bit ``k`` set. Otherwise every group is tried by itself.
    """
    groups = [name for name, group in model.spec.groups.items() if group.growable]
    trial = _Trial(model, tolerance, generator)
    bits = range(len(groups).bit_length())
    coded = [[g for i, g in enumerate(groups, start=1) if i >> bit & 1] for bit in bits]
    if not any(trial.problem(dict.fromkeys(some, 1)) for some in coded):
        return trial.together(groups)
    reasons = {name: trial.problem({name: 1}) for name in groups}
    growable = [name for name in groups if not reasons[name]]
    return {**{n: why for n, why in reasons.items() if why}, **trial.together(growable)}


class _Trial:
    def __init__(self, model: ModelInProof, tolerance: float, generator: torch.Generator) -> None:
        self.model = model
        self.tolerance = tolerance
        self.generator = generator
        self.reference = model.run()

    def together(self, groups: Sequence[str]) -> dict[str, str]:
        """Let all groups grow by different amounts at once."""
        problem = self.problem({name: 1 + i % 3 for i, name in enumerate(groups)})
        return dict.fromkeys(groups, f"together with others: {problem}") if problem else {}

    def problem(self, growth: Mapping[str, int]) -> str:
        """What goes wrong when groups grow by the given numbers of units; empty if nothing."""
        if not growth:
            return ""
        model = self.model
        widths = {name: model.spec.sizes[name] + more for name, more in growth.items()}
        places = {
            name: torch.randperm(width, generator=self.generator)[: model.spec.sizes[name]]
            for name, width in widths.items()
        }
        state = model.spec.expand(model.tensors, places, widths)
        try:
            with restored(model.module):
                own = resize(model.module, state).state_dict()
                for name, tensor in state.items():
                    if tensor is not model.tensors[name]:
                        own[name].copy_(tensor)
                change = relative_change(model.run(), self.reference)
        except Exception as error:  # whatever goes wrong, the group keeps its width
            cause = error.__cause__ or error
            return f"the model does not run with more units ({first_line(cause)})"
        if not change < self.tolerance:
            return "zero-padded units change the output"
        return ""


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Whatever `resize` does to a model inside the context is undone after it.

    Parameters
    ----------
    model : nn.Module
        The model. A copy of it for every trial would take longer than the trial's run.
    """
    before = [(module.__dict__, dict(module.__dict__)) for module in model.modules()]
    # Parameters, buffers, and the flat weights of recurrent layers are in containers of their own.
    inner = [
        (value, value.copy())
        for _, attributes in before
        for value in attributes.values()
        if isinstance(value, (list, dict))
    ]
    try:
        yield
    finally:
        for container, contents in [*before, *inner]:
            container.clear()
            if isinstance(container, dict):
                container.update(contents)
            else:
                container.extend(contents)
