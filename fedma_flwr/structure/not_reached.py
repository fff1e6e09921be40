"""Parameters that a model's `forward` does not reach: what is known, and what is not."""

from __future__ import annotations

from fedma_flwr.structure.spec import PermutationSpec

NOT_REACHED = "forward does not reach it"
FROZEN = "forward does not reach it, and it is frozen"


def not_reached(spec: PermutationSpec, *, trainable_only: bool = False) -> list[str]:
    """The parameters of a derived spec that `forward` does not reach, in the spec's order.

    How they follow the model's units is unknown, so that they have no groups.

    Parameters
    ----------
    spec : PermutationSpec
        As `derive_spec` gives it.
    trainable_only : bool (default: False)
        Whether to leave out those that are frozen (``requires_grad=False``).
    """
    reasons = {NOT_REACHED} if trainable_only else {NOT_REACHED, FROZEN}
    found = {axis.rpartition("[")[0] for axis, why in spec.pinned.items() if why in reasons}
    return [name for name in spec.axes if name in found]
