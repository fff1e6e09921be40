"""Where a run's spec comes from: a folder, the model, or whoever wrote it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from logging import INFO

from flwr.supercore import log
from torch import nn

from fedma_flwr.server.arguments import check_arguments, check_model, check_spec
from fedma_flwr.structure import (
    PermutationSpec,
    SpecError,
    cached_spec,
    derive_spec,
    prove_spec,
)
from fedma_flwr.structure.known_specs import remember_spec
from fedma_flwr.structure.model_copies import Inputs
from fedma_flwr.structure.not_reached import not_reached


def make_spec(
    model: nn.Module | None,
    example_inputs: Inputs | None,
    spec: PermutationSpec | None,
    cache: str | os.PathLike[str] | None = None,
) -> PermutationSpec:
    """Derive the spec, or prove the one that was given; a spec alone is taken at its word."""
    check_model(model, example_inputs, spec)
    check_arguments({"spec_cache": cache})
    _check_real(model)
    if model is not None and example_inputs is not None:
        if spec is None:
            spec = (
                derive_spec(model, example_inputs)
                if cache is None
                else cached_spec(model, example_inputs, cache)
            )
            _tell_not_reached(not_reached(spec))
        else:
            spec = prove_spec(spec, model, example_inputs).spec
    return remember_spec(check_spec(spec))


def _check_real(model: nn.Module | None) -> None:
    """Refuse complex tensors: units are matched, and checked, as real numbers."""
    state = model.state_dict() if isinstance(model, nn.Module) else {}
    if names := [name for name, value in state.items() if getattr(value, "is_complex", bool)()]:
        raise SpecError(
            f"model has complex tensors: {', '.join(names[:3])}{', ...' * (len(names) > 3)}. FedMA "
            "wants real ones: keep real and imaginary parts as two parameters, and put them "
            "together in forward by torch.complex."
        )


def _tell_not_reached(names: Sequence[str]) -> None:
    if names:
        log(
            INFO,
            "forward does not reach %s of the model's parameters (%s%s): they are averaged by "
            "examples, as in FedAvg, unless they are named in FedMA(personal=...). If other code "
            "feeds hidden units to them, give FedMA a model whose forward does so, or "
            "max_growth=1 and matcher=IdentityMatching(). If forward uses them for other inputs, "
            "add such inputs: example_inputs=[(x,), (other,)].",
            len(names),
            ", ".join(names[:3]),
            ", ..." * (len(names) > 3),
        )
