"""What to say of a model that no spec can be derived for, and the way out."""

from __future__ import annotations

from fedma_flwr.structure.axes import UnsupportedModelError

BY_HAND = (
    "Write the spec by hand instead: spec = PermutationSpec(groups={'conv1': 20}, axes="
    "{'conv1.weight': 'conv1, 1, 5, 5', ...}) with one expression for every axis of every tensor "
    "of the state dict; check it with prove_spec(spec, model, example_inputs) and pass it on "
    "instead of the model."
)


def unsupported(problem: str) -> UnsupportedModelError:
    """The error for a model that no spec can be derived for, with the way out."""
    return UnsupportedModelError(f"{problem} {BY_HAND}")


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
