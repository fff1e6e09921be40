"""`Trace`: what propagation through a model's graphs has learned about its tensors."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedma_flwr.structure.deriving.atoms import Axes, Axis

#: Why positions of the model's inputs are pinned; plain from the model, it is not told.
OF_AN_INPUT = "it is an input of the model"


@dataclass
class Trace:
    """What propagation has learned.

    Parameters
    ----------
    state : dict of str to Axes
        The axes of every tensor of the state dict, under one name for each tied parameter.
    names : dict of str to str
        For every name of the state dict the name that `state` has it under.
    buffers : frozenset of str
        The names of the state dict that are no parameters.
    placeholders : dict of str to str
        For the inputs of the graph that are tensors of the state dict, their name there.
    used : dict of str to None
        The tensors that some operator reads, in that order.
    contracted : list of Axis
        Axes of weights that are summed over or looked up, in that order.
    variances : list of (Axes, Axes)
        Tensors that an operator reads as a running variance, and the running mean beside each.
    directions : list of (Axes, int)
        Tensors that an operator divides by their norm, and the axis along which each has one.
    outputs : list of Axis
        The axes of the model's outputs.
    """

    state: dict[str, Axes]
    names: dict[str, str]
    buffers: frozenset[str]
    placeholders: dict[str, str] = field(default_factory=dict)
    used: dict[str, None] = field(default_factory=dict)
    by_twin: set[str] = field(default_factory=set)  # used as their twins are, not by `forward`
    contracted: list[Axis] = field(default_factory=list)
    variances: list[tuple[Axes, Axes]] = field(default_factory=list)
    directions: list[tuple[Axes, int]] = field(default_factory=list)
    outputs: list[Axis] = field(default_factory=list)

    def axes_of(self, name: str) -> Axes:
        """The axes of a tensor of the state dict."""
        return self.state[self.names[name]]

    def use(self, placeholder: str) -> None:
        """Note that an operator reads an input of the graph."""
        if placeholder in self.placeholders:
            self.used.setdefault(self.names[self.placeholders[placeholder]])

    def is_used(self, name: str) -> bool:
        """Whether an operator reads a tensor of the state dict."""
        return self.names[name] in self.used
