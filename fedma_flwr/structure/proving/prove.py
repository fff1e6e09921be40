"""Prove a spec numerically: invariance, sensitivity, growability."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from fedma_flwr.structure.axes import SpecError
from fedma_flwr.structure.model_copies import (
    Inputs,
    check_model_and_inputs,
    quiet,
    with_lazy_layers_built,
)
from fedma_flwr.structure.proving.draws import Draws
from fedma_flwr.structure.proving.growability import with_proven_growth
from fedma_flwr.structure.proving.invariance import TOLERANCE
from fedma_flwr.structure.proving.model_in_proof import ModelInProof
from fedma_flwr.structure.proving.spec_changes import without_groups
from fedma_flwr.structure.proving.swaps import Pair
from fedma_flwr.structure.spec import PermutationSpec

# Memory that a proof takes for a parameter, measured: weights and their derivatives in float64,
# permuted and as they were, beside the model itself.
_BYTES_PER_PARAMETER = 42


@dataclass(frozen=True)
class SpecProof:
    """What was proven about a spec.

    Parameters
    ----------
    spec : PermutationSpec
        The spec with `growable` and `reason` of every group as they were found.
    invariance : float
        Largest relative change of the output under random permutations of all groups at once.
    inert : tuple of (str, str)
        Groups and tensors where no weights were found for which the output depends on the order
        of the units in that tensor: the bias of an attention's keys, for example.
    """

    spec: PermutationSpec
    invariance: float
    inert: tuple[Pair, ...] = ()

    @property
    def growable(self) -> tuple[str, ...]:
        """The groups that zero-padded units may be added to."""
        return tuple(name for name, group in self.spec.groups.items() if group.growable)


@quiet()
def prove_spec(
    spec: PermutationSpec,
    model: nn.Module,
    example_inputs: Inputs,
    *,
    seed: int = 0,
    drop_unused: bool = False,
) -> SpecProof:
    """Prove that a spec is right for a model.

    Weights, running statistics and inputs are drawn anew until the output depends on every group;
    for each draw, random permutations of all groups at once must leave the output unchanged. Then
    zero-padded units are added to every group; where that changes the output, or the model does
    not run, the group must keep its width. Where the model runs in training mode (without dropout)
    or on a larger batch, invariance is proven there too: branches that only training takes count.

    Parameters
    ----------
    spec : PermutationSpec
        The spec, derived or written by hand.
    model : nn.Module
        The model. It is copied, never changed.
    example_inputs : Tensor, tuple, dict, or list of them
        Inputs as in ``model(*example_inputs)``, or ``model(**example_inputs)``; their shapes and
        types matter, and integers stay in range. A list of tuples or dicts is one of several
        examples, as for `derive_spec`.
    seed : int (default: 0)
        Seed of all draws. The global random generator is left alone.
    drop_unused : bool (default: False)
        Whether to drop groups that the output does not depend on instead of refusing them.

    Returns
    -------
    SpecProof
        With the spec to use from then on.

    Raises
    ------
    SpecError
        If the spec does not fit the model's tensors, if permuting a group changes the output, or
        if the output does not depend on a group. The message names the group and tensor. Also if
        the machine has less memory than the proof takes.
    UnsupportedModelError
        If the arguments are no model and inputs for it.
    """
    check_model_and_inputs(model, example_inputs)
    model = with_lazy_layers_built(model, example_inputs)
    _check_memory(model)
    generator = torch.Generator().manual_seed(seed)
    in_proof = ModelInProof(spec, model, example_inputs)
    draws = Draws(in_proof, generator)
    draws.run()
    pending = draws.pending
    unused = [g for g in spec.groups if all(pair in pending for pair in _pairs_of(spec, g))]
    if unused and not drop_unused:
        raise SpecError(
            f"The model's output does not depend on the units of {unused}, for any weights and "
            f"inputs tried; tensors: {sorted({t for g, t in pending if g in unused})}."
        )
    spec = without_groups(spec, unused, "the output does not depend on it")
    in_proof.spec = spec
    inert = tuple(sorted(pair for pair in pending if pair[0] not in unused))
    return SpecProof(with_proven_growth(in_proof, draws, TOLERANCE), draws.worst, inert)


def _check_memory(model: nn.Module) -> None:
    """Refuse what would end with this process being killed."""
    count = sum(parameter.numel() for parameter in model.parameters())
    needed, has = count * _BYTES_PER_PARAMETER, _physical_memory()
    if has is not None and needed > has:
        raise SpecError(
            f"A proof for {count / 1e6:.0f} million parameters takes about {needed / 1e9:.1f} GB "
            f"of memory and this machine has {has / 1e9:.1f} GB. Derive and prove the spec on a "
            "larger one, keep its `to_json()`, and give it to FedMA as `spec`, without `model`."
        )


def _physical_memory() -> int | None:
    """The machine's memory in bytes; None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _pairs_of(spec: PermutationSpec, group: str) -> Iterable[Pair]:
    return ((group, name) for name in spec.axes if group in spec.tensor_groups(name))
