"""What the names in a state dict say by torch's convention: the one place that reads them.

A spec says itself which running mean belongs to which running variance; names count only where it
was written without that. `nn.Module.state_dict` joins the path of a module and the name that a
tensor has in it by a dot.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

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


def spectral_norms(names: Iterable[str]) -> list[tuple[str, str, str]]:
    """The tensors of every spectral norm: its weight, and the left and right singular vector.

    Both of torch's forms: ``spectral_norm``, and that of ``parametrizations``. Others are left out.
    """
    listed, found = frozenset(names), []
    for left in sorted(listed):
        if left.endswith("._u"):  # x.parametrizations.weight.0._u
            path = left.removesuffix("._u")
            weight, right = f"{module_of(path)}.original", f"{path}._v"
        elif left.endswith("_u"):  # x.weight_u
            weight, right = f"{left.removesuffix('_u')}_orig", f"{left.removesuffix('_u')}_v"
        else:
            continue
        if {weight, right} <= listed:
            found.append((weight, left, right))
    return found
