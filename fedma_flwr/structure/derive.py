"""Derive the spec of a model, and prove what was derived: `deriving` and `proving` in one call."""

from __future__ import annotations

import logging
from collections import Counter

from torch import nn

from fedma_flwr.structure.axes import SpecError, UnsupportedModelError
from fedma_flwr.structure.deriving.propose import propose_spec
from fedma_flwr.structure.failing_calls import refuse_failing_call
from fedma_flwr.structure.known_specs import remember_spec
from fedma_flwr.structure.model_copies import Inputs, check_model_and_inputs
from fedma_flwr.structure.proving.prove import prove_spec
from fedma_flwr.structure.refusals import unsupported
from fedma_flwr.structure.spec import PermutationSpec

_LOG = logging.getLogger("flwr")  # where users of Flower look
# Share of entries below which there is a warning, and how many reasons it gives.
_LITTLE, _TOLD = 0.5, 3


def derive_spec(model: nn.Module, example_inputs: Inputs) -> PermutationSpec:
    """Derive the spec of a model and prove it.

    Parameters
    ----------
    model : nn.Module
        Any model that ``torch.export`` can capture. It is copied, never changed.
    example_inputs : Tensor, tuple, dict, or list of them
        Inputs as in ``model(*example_inputs)``, or ``model(**example_inputs)``; a tensor is the
        only argument. Batches of at least two let training-only branches be seen as well. A list
        whose entries are all tuples or dicts is one of several examples, for branches, other
        lengths, optional arguments: the spec holds for all of them. What none of them does is not
        promised. A list of anything else is one example, like a tuple.

    Returns
    -------
    PermutationSpec
        The proven spec (see `prove_spec`): its groups in forward order, named after the module
        that makes their units; those that must keep their width say why. Parameters that `forward`
        does not reach have no groups: `not_reached` lists them.

    Raises
    ------
    UnsupportedModelError
        If an operator has no rule (the message names the operator, the module and the source
        line), if the model cannot be captured, or if the spec cannot be proven.
    """
    check_model_and_inputs(model, example_inputs)
    try:
        spec = _derived(model, example_inputs)
    except UnsupportedModelError:
        refuse_failing_call(model, example_inputs)  # then it says more
        raise
    _tell(type(model).__name__, spec)
    return remember_spec(spec)


def _derived(model: nn.Module, example_inputs: Inputs) -> PermutationSpec:
    try:
        spec = propose_spec(model, example_inputs)
        return prove_spec(spec, model, example_inputs, drop_unused=True).spec
    except UnsupportedModelError:
        raise
    except SpecError as error:
        raise unsupported(f"The derived spec could not be proven: {error}") from error
    except Exception as error:  # callers know nothing of graphs
        raise unsupported(f"Derivation failed ({type(error).__name__}: {error}).") from error


def _tell(model: str, spec: PermutationSpec) -> None:
    """Log how much of a model is matched, and, where it is little, what stands against it."""
    share = spec.matched_share()
    fixed = sum(not group.growable for group in spec.groups.values())
    _LOG.info(
        "%s: %d groups of units, %d of them at fixed width; %.0f %% of its entries are matched. "
        "print(spec) says more.",
        *(model, len(spec.groups), fixed, 100 * share),
    )
    if share >= _LITTLE:
        return
    reasons = Counter(spec.pinned.values()).most_common(_TOLD)
    told = "; ".join(f"{why} ({count} axes)" for why, count in reasons)
    _LOG.warning(
        "%s of %s can be matched%s. The rest is averaged position by position, as in FedAvg.",
        "Only a part of the units" if spec.groups else "No units",
        model,
        f": {told}" if told else "",
    )
