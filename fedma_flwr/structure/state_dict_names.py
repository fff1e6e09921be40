"""What the names in a state dict say by torch's convention: the one place that reads them.

A spec says itself which running mean belongs to which running variance; names count only where it
was written without that. `nn.Module.state_dict` joins the path of a module and the name that a
tensor has in it by a dot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedma_flwr.structure.axes import AxisExpression

RUNNING_MEAN, RUNNING_VARIANCE = "running_mean", "running_var"


def named_variances(
    axes: Mapping[str, tuple[AxisExpression, ...]], statistics: Sequence[str]
) -> dict[str, str]:
    """The default of `PermutationSpec.variances`: buffers named as torch's norm layers name theirs.

    Parameters
    ----------
    axes : mapping of str to tuple of AxisExpression
        What the axes of each tensor mean.
    statistics : sequence of str
        The running statistics.

    Returns
    -------
    dict of str to str
        For every ``running_var`` the ``running_mean`` of the same module, if both are statistics
        of the same units.
    """
    found, listed = {}, frozenset(statistics)
    for name in statistics:
        mean = name.removesuffix(RUNNING_VARIANCE) + RUNNING_MEAN
        if name.endswith(RUNNING_VARIANCE) and mean in listed and axes.get(mean) == axes.get(name):
            found[name] = mean
    return found


def module_of(tensor: str) -> str:
    """The path of the module that a tensor of the state dict belongs to; "" for the model's own."""
    return tensor.rpartition(".")[0]
