"""Whether a model's head is one linear layer, which can be solved in closed form."""

from __future__ import annotations

from dataclasses import dataclass

from fedma_flwr.structure.spec import PermutationSpec
from fedma_flwr.structure.state_dict_names import module_of


@dataclass(frozen=True)
class LinearHead:
    """A head that is one linear layer, or a 1 x 1 convolution.

    Parameters
    ----------
    module : str
        Path of the layer in the model.
    weight : str
        Its weight, (C, d, 1, ..., 1), in the state dict.
    bias : str or None
        Its bias, (C,).
    """

    module: str
    weight: str
    bias: str | None


def linear_head(spec: PermutationSpec) -> LinearHead | str:
    """The head of a model as one linear layer, or in words why it is none.

    Parameters
    ----------
    spec : PermutationSpec
        The model's spec.

    Examples
    --------
    >>> spec = PermutationSpec(
    ...     groups={"hidden": 3},
    ...     axes={"a.weight": "hidden, 2", "b.weight": "4, hidden", "b.bias": "4"},
    ... )
    >>> linear_head(spec)
    LinearHead(module='b', weight='b.weight', bias='b.bias')
    """
    if not spec.head:
        return "no tensor is the head's alone (tied weights)"
    modules = {module_of(name) for name in spec.head}
    if len(modules) != 1:
        return f"the head is not one layer, it has the tensors {', '.join(spec.head)}"
    weights = [name for name in spec.head if len(spec.axes[name]) > 1]
    biases = [name for name in spec.head if len(spec.axes[name]) == 1]
    if len(weights) != 1 or len(biases) > 1 or len(weights + biases) < len(spec.head):
        return f"the head has other tensors than a weight and a bias: {', '.join(spec.head)}"
    _, _, *kernel = spec.axes[weights[0]]
    if spec.output_axis(weights[0]) != 0 or any(a.groups or a.size({}) != 1 for a in kernel):
        return f"{weights[0]!r} is neither a linear layer's weight nor a 1 x 1 convolution's"
    return LinearHead(modules.pop(), weights[0], biases[0] if biases else None)
