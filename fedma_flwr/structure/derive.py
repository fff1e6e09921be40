"""Derive the spec of a model, and prove what was derived: `deriving` and `proving` in one call."""

from __future__ import annotations

from torch import nn

from fedma_flwr.structure.axes import SpecError, UnsupportedModelError
from fedma_flwr.structure.deriving.propose import propose_spec
from fedma_flwr.structure.model_copies import Inputs
from fedma_flwr.structure.proving.prove import prove_spec
from fedma_flwr.structure.refusals import unsupported
from fedma_flwr.structure.spec import PermutationSpec


def derive_spec(model: nn.Module, example_inputs: Inputs) -> PermutationSpec:
    """Derive the spec of a model and prove it.

    Parameters
    ----------
    model : nn.Module
        Any model that ``torch.export`` can capture. It is copied, never changed.
    example_inputs : tuple or dict
        Inputs as in ``model(*example_inputs)``, or ``model(**example_inputs)``. Batches of at
        least two let layers with training-only branches be seen as well.

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
    try:
        spec = propose_spec(model, example_inputs)
        return prove_spec(spec, model, example_inputs, drop_unused=True).spec
    except UnsupportedModelError:
        raise
    except SpecError as error:
        raise unsupported(f"The derived spec could not be proven: {error}") from error
    except Exception as error:  # callers know nothing of graphs
        raise unsupported(f"Derivation failed ({type(error).__name__}: {error}).") from error
