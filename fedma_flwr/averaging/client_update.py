"""What one client sent in a stage, once it has been checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from fedma_flwr.averaging.head_moments import HeadMoments


@dataclass(frozen=True)
class ClientUpdate:
    """What one client sent at the end of a stage.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        The stage's uploads: at the global widths along groups matched in earlier stages, at the
        client's own widths along the groups of this stage.
    examples : float
        The client's weight in sample-weighted means (its number of training examples).
    class_counts : Tensor, optional
        (outputs,) training examples of each class.
    moments : HeadMoments, optional
        Of the head's inputs, in a head stage that solves the head.
    head_counts : mapping of str to Tensor
        By tensor of the head, (outputs,) class counts that are about it alone.
    held : mapping of str to Tensor
        Of a narrow client, the (n,) global units that it holds of the groups matched in earlier
        stages; all others hold all of them.
    narrow : bool
        Whether it is narrower than the model and stays so.
    parts : tuple of mapping of str to Tensor
        Global units of further models, whose head inputs stand behind the client's own in
        `moments`.
    """

    tensors: Mapping[str, Tensor]
    examples: float
    class_counts: Tensor | None = None
    moments: HeadMoments | None = None
    head_counts: Mapping[str, Tensor] = field(default_factory=dict)
    held: Mapping[str, Tensor] = field(default_factory=dict)
    narrow: bool = False
    parts: tuple[Mapping[str, Tensor], ...] = ()

    def counts_of(self, name: str) -> Tensor | None:
        """The class counts that a tensor of the head is averaged by, if they fit it."""
        return self.head_counts.get(name, self.class_counts)
