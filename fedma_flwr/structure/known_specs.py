"""Specs that this process has derived or been given, by the tensors of their models."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor

from fedma_flwr.structure.spec import PermutationSpec

_MOST = 16
_KNOWN: OrderedDict[str, PermutationSpec] = OrderedDict()


def remember_spec(spec: PermutationSpec) -> PermutationSpec:
    """Keep a spec for `known_spec`; the last few are kept."""
    _KNOWN[spec.to_json()] = spec
    _KNOWN.move_to_end(spec.to_json())
    while len(_KNOWN) > _MOST:
        _KNOWN.popitem(last=False)
    return spec


def known_spec(tensors: Mapping[str, Tensor]) -> PermutationSpec | None:
    """The spec, remembered last, of a model with these tensors at its initial widths."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    found = (spec for spec in reversed(_KNOWN.values()) if spec.shapes() == shapes)
    return next(found, None)
