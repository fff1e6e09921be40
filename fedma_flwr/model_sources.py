"""What `load_model` takes a model's values from, and how they get into it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord
from torch import Tensor, nn

from fedma_flwr import protocol
from fedma_flwr.structure import PermutationSpec, SpecError, resize
from fedma_flwr.structure.known_specs import known_spec
from fedma_flwr.structure.narrowing import first_units
from fedma_flwr.structure.wrapped_models import under_names


def load_values(
    model: nn.Module,
    source: Any,
    *,
    partial: bool = False,
    width: float = 1.0,
    spec: PermutationSpec | None = None,
) -> None:
    """Give a model the widths and values of a state dict, and its own version of each module.

    Parameters
    ----------
    model : nn.Module
        It may be wrapped, or have wrapped modules in it.
    source : ArrayRecord, or mapping of str to Tensor or array, or sequence of arrays
        Arrays without names are those of ``model.state_dict()``, in its order.
    partial : bool (default: False)
        Whether the model keeps its own of what the source lacks.
    width : float (default: 1.0)
        Of the model that it becomes, relative to its own: the first units of each group.
    spec : PermutationSpec, optional
        The model's, for other widths. None: one that this process knows.

    Raises
    ------
    SpecError
        If the source is none of these, or not of this model.
    """
    own = model.state_dict(keep_vars=True)
    tensors = under_names(_as_tensors(source, list(own)), own)
    if partial:
        tensors = {**{name: tensor.detach() for name, tensor in own.items()}, **tensors}
    if width != 1.0:
        tensors = _first_units(model, tensors, width, spec)
    resize(model, tensors)
    state = OrderedDict(tensors)
    # Flower's arrays carry no versions; without them modules take a state dict for an old one.
    metadata = getattr(source, "_metadata", None) or getattr(own, "_metadata", None)
    if metadata is not None:
        state._metadata = metadata  # type: ignore[attr-defined]
    model.load_state_dict(state)


def _first_units(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    width: float,
    spec: PermutationSpec | None,
) -> dict[str, Tensor]:
    """The first units of each group, as many as the model has at a ratio of its own widths."""
    own = {n: t for n, t in model.state_dict().items() if isinstance(t, Tensor)}
    spec = spec or known_spec(own)
    if spec is None:
        raise SpecError(
            f"load_model was given width={width!r}, but this process does not know where the "
            "units of this model are: give spec=strategy.settings.spec, or that of derive_spec."
        )
    named = under_names(tensors, spec.axes)
    return under_names(spec.select(named, first_units(spec, width)), own)


def _as_tensors(source: Any, names: Sequence[str]) -> dict[str, Tensor]:
    if isinstance(source, ArrayRecord):
        return protocol.to_tensors(source)
    if isinstance(source, Mapping):
        return {name: _as_tensor(name, value) for name, value in source.items()}
    if isinstance(source, list | tuple):
        if len(source) != len(names):
            raise SpecError(
                f"load_model was given {len(source)} arrays; the model's state dict has "
                f"{len(names)}."
            )
        return {n: _as_tensor(n, value) for n, value in zip(names, source, strict=True)}
    raise SpecError(
        f"load_model was given a {type(source).__name__}; it takes a message, its ArrayRecord, or "
        "a state dict: of a file, load_model(model, torch.load(path)), or with np.load(path)."
    )


def _as_tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray | np.generic | int | float):
        array = np.asarray(value)
        if array.dtype.kind in "bifuc":
            # Copied: the file may be mapped, and read only.
            return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
    raise SpecError(
        f"load_model wants a tensor, or an array of numbers, for {name!r}; it was a "
        f"{type(value).__name__}."
    )
