"""Which operators a run calls, and on what: it tells cheaply whether a way is known."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedma_flwr.structure.deriving.captured import state_names
from fedma_flwr.structure.model_copies import call, plain_attention, quiet
from fedma_flwr.structure.output_tensors import tensors_in
from fedma_flwr.structure.restoring import buffers_kept, restored


def run_digest(model: nn.Module, inputs: Any) -> str:
    """A digest of one run: two runs with the same one are the same graph.

    Every operator counts, with the shapes of its results, its arguments other than tensors, and for
    each tensor where it comes from: a state, an input, another operator, a constant of some shape.

    Raises
    ------
    Exception
        Whatever the run raises.
    """
    names, alive = state_names(model)
    given = [leaf.clone() for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    fresh = iter(given)
    leaves, form = torch.utils._pytree.tree_flatten(inputs)
    filled = [next(fresh) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    known = {id(tensor): names[id(tensor)] for tensor in alive}
    known |= {id(tensor): f"input {number}" for number, tensor in enumerate(given)}
    own = torch.utils._pytree.tree_unflatten(filled, form)
    with quiet(), restored(model), buffers_kept(model), plain_attention(), _Noted(known) as noted:
        for out in tensors_in(call(model, own)):
            noted.note("output", [out])
    found: str = noted.digest.hexdigest()
    return found


class _Noted(TorchDispatchMode):
    def __init__(self, known: dict[int, str]) -> None:
        super().__init__()
        self.known = known
        self.digest = hashlib.sha256()
        self._alive: list[Tensor] = []  # else another tensor could get the same identity
        self._count = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        self.note(str(func), [args, kwargs or {}])
        result = func(*args, **(kwargs or {}))
        self._count += 1
        for number, leaf in enumerate(tree_leaves(result)):
            if isinstance(leaf, Tensor):
                self.known[id(leaf)] = f"{self._count} {number} {tuple(leaf.shape)}"
                self._alive.append(leaf)
        return result

    def note(self, what: str, arguments: Any) -> None:
        """Add a call to the digest."""
        said = [self._text(leaf) for leaf in tree_leaves(arguments)]
        self.digest.update("\0".join([what, *said, ""]).encode())

    def _text(self, value: Any) -> str:
        if not isinstance(value, Tensor):
            return repr(value)
        return self.known.get(id(value), f"constant {tuple(value.shape)} {value.dtype}")
