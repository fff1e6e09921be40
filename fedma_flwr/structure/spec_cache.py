"""Specs in a folder, so that a model that is known already is not derived and proven again."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

from torch import nn

from fedma_flwr.structure.axes import SpecError
from fedma_flwr.structure.derive import derive_spec
from fedma_flwr.structure.model_copies import Inputs, tensors_of
from fedma_flwr.structure.model_digest import model_digest
from fedma_flwr.structure.spec import PermutationSpec

_LOG = logging.getLogger("flwr")  # where users of Flower look


def cached_spec(
    model: nn.Module, example_inputs: Inputs, folder: str | os.PathLike[str]
) -> PermutationSpec:
    """The spec of a model: from the folder if it is there, else derived, proven and kept.

    Parameters
    ----------
    model : nn.Module
        As for `derive_spec`.
    example_inputs : Tensor, tuple, dict, or list of them
        The same.
    folder : str or Path
        Is made if it does not exist. A spec is found by `model_digest`; a change of the model's
        code, of its own package's, of torch or of this package makes another one. Code of *other*
        packages that the model calls is not looked at: empty the folder when that changes.

    Returns
    -------
    PermutationSpec

    Raises
    ------
    UnsupportedModelError
        As `derive_spec`. What goes wrong with the folder costs a warning, and the time.
    """
    try:
        digest = model_digest(model, example_inputs)
    except (OSError, TypeError) as error:
        _LOG.warning("The spec is not kept in %s: %s.", folder, error)
        return derive_spec(model, example_inputs)
    file = Path(folder).expanduser() / f"spec-{digest[:32]}.json"
    if (known := _read(file, model)) is not None:
        _LOG.info("The spec of %s comes from %s.", type(model).__name__, file)
        return known
    spec = derive_spec(model, example_inputs)
    _write(file, spec)
    return spec


def _read(file: Path, model: nn.Module) -> PermutationSpec | None:
    try:
        spec = PermutationSpec.from_json(file.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, SpecError) as error:
        _LOG.warning("The spec in %s cannot be read, it is derived again: %s.", file, error)
        return None
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors_of(model).items()}
    if {name: tuple(shape) for name, shape in spec.shapes().items()} != shapes:
        _LOG.warning("The spec in %s is of another model, it is derived again.", file)
        return None
    return spec


def _write(file: Path, spec: PermutationSpec) -> None:
    """Whole or not at all: other processes may look for it."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=file.parent, delete=False, encoding="utf-8"
        ) as new:
            new.write(spec.to_json())
        os.replace(new.name, file)
    except OSError as error:
        _LOG.warning("The spec is not kept in %s: %s.", file, error)
