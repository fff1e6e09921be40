"""Specs for networks whose layers are called one after the other, in their order of definition."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from fedma_flwr.structure.axes import SpecError
from fedma_flwr.structure.spec import PermutationSpec

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass
class _Builder:
    """What has been read so far: the groups, the axes, and the stream that the next layer sees."""

    groups: dict[str, int] = field(default_factory=dict)
    axes: dict[str, str] = field(default_factory=dict)
    statistics: list[str] = field(default_factory=list)
    group: str = ""  # the group that the next layer reads; "" while that is the model's input
    width: int = 0

    def add_layer(self, name: str, layer: nn.Module, group: str | None) -> None:
        """Read a layer whose units form `group`; None for the head."""
        weight = layer.get_parameter("weight")
        self._check_inputs(name, weight.shape[1] * getattr(layer, "groups", 1))
        if getattr(layer, "groups", 1) != 1:
            raise SpecError(f"Layer {name!r} is a grouped convolution; write its spec by hand.")
        output = group or str(weight.shape[0])
        kernel = [str(size) for size in weight.shape[2:]]
        self.axes[f"{name}.weight"] = ", ".join([output, self._input(weight.shape[1]), *kernel])
        if getattr(layer, "bias", None) is not None:
            self.axes[f"{name}.bias"] = output
        if group:
            self.groups[group] = weight.shape[0]
        self.group, self.width = group or "", weight.shape[0]

    def add_batch_norm(self, name: str, layer: nn.Module) -> None:
        """Read a batch norm: it carries the units of the layer before it."""
        buffers = dict(layer.named_buffers())
        for key, value in layer.state_dict().items():
            if value.dim() == 1 and len(value) != self.width:
                raise SpecError(f"Batch norm {name!r} does not follow a layer of its width.")
            self.axes[f"{name}.{key}"] = (self.group or str(self.width)) if value.dim() else ""
            if key in buffers and value.dim():
                self.statistics.append(f"{name}.{key}")

    def _check_inputs(self, name: str, inputs: int) -> None:
        if self.group and inputs % self.width:
            raise SpecError(
                f"Layer {name!r} reads {inputs} inputs, no multiple of the {self.width} units of "
                f"{self.group!r} before it: the layers are not called in the order they were "
                "defined. Write the spec by hand."
            )

    def _input(self, inputs: int) -> str:
        if not self.group:
            return str(inputs)
        block = inputs // self.width
        return self.group if block == 1 else f"{self.group} x {block}"


def sequential_spec(model: nn.Module) -> PermutationSpec:
    """The spec of a sequential network.

    Parameters
    ----------
    model : nn.Module
        Convolutions, batch norms and linear layers (and anything without parameters: activations,
        pooling, dropout, ``flatten(1)``), called in the order in which they were defined. The
        last layer is the head. Whether the order is right is not visible here: prove the spec.

    Returns
    -------
    PermutationSpec
        One group for each layer but the last, named after the layer.

    Raises
    ------
    SpecError
        If a layer has parameters of another kind, or if the widths do not follow one another.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 2))
    >>> sequential_spec(net).describe("3.weight")
    '2, 0. x 9'
    """
    leaves = [
        (name, module)
        for name, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None
        or next(module.buffers(recurse=False), None) is not None
    ]
    layers = [name for name, module in leaves if isinstance(module, (nn.Linear, *_CONVOLUTIONS))]
    builder = _Builder()
    for name, module in leaves:
        if isinstance(module, (nn.Linear, *_CONVOLUTIONS)):
            builder.add_layer(name, module, None if name == layers[-1] else _group_name(name))
        elif isinstance(module, _BATCH_NORMS):
            builder.add_batch_norm(name, module)
        else:
            raise SpecError(
                f"Layer {name!r} ({type(module).__name__}) is not known to sequential_spec: it "
                "reads convolutions, batch norms and linear layers. Write the spec by hand."
            )
    return PermutationSpec(
        groups=builder.groups, axes=builder.axes, statistics=tuple(builder.statistics)
    )


def _group_name(layer: str) -> str:
    # A name of digits alone would read as a fixed size.
    return f"{layer}." if layer.isdigit() else layer
