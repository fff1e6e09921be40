"""Draws of weights and inputs, until a model's output depends on all that a spec is about."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fedma_flwr.structure.axes import SpecError
from fedma_flwr.structure.model_copies import Example
from fedma_flwr.structure.proving.drawing import (
    ATTEMPTS,
    draw_anew,
    draw_inputs,
    needs_fitting,
    output_of,
    redraw,
    with_another_batch,
)
from fedma_flwr.structure.proving.invariance import (
    check_another_batch,
    check_invariance,
    check_where_it_runs,
    is_chaotic,
    run_or_none,
)
from fedma_flwr.structure.proving.model_in_proof import ModelInProof, Outputs, relative_change
from fedma_flwr.structure.proving.sensitivity import all_pairs, sensitive_pairs
from fedma_flwr.structure.proving.swaps import Pair

# Examples that are added to a batch, for units that none of the batch sets going: where all
# together have few entries, and where they have more.
_MANY, _SOME, _SMALL = 14, 2, 2**12


class Draws:
    """Evidence for a spec from several draws.

    Parameters
    ----------
    model : ModelInProof
        The model in proof. It is left at the last draw for which its output depended on more than
        before.
    generator : torch.Generator
        Where randomness comes from.

    Attributes
    ----------
    pending : set of (str, str)
        Groups and tensors that the output was not seen to depend on.
    worst : float
        The largest relative change under permutations.
    evaluation, training : list of Tensor or None
        The model's output as it is left, in each mode; None where nothing can be compared.
    training_compared : bool
        Whether it is known that training mode gives the same numbers each time.
    alike : bool
        Whether training mode gives the very same numbers: then it has nothing else to show.
    """

    def __init__(self, model: ModelInProof, generator: torch.Generator) -> None:
        self.model, self.generator = model, generator
        self.pending = all_pairs(model)
        self.worst = 0.0
        self.evaluation: Outputs = []
        self.training: Outputs | None = None
        self.alike = self.training_compared = False
        self._good: tuple[int, Tensor, list[Example]] | None = None

    def run(self) -> None:
        """Draw, and check invariance for each draw that shows anything new.

        Raises
        ------
        SpecError
            If the spec is wrong, or if no draw is good for anything.
        """
        attempt = 0
        for attempt in range(ATTEMPTS):
            self._draw(attempt)
            if self._good and not self.pending:
                break
        if self._good is None:
            raise SpecError(
                "For all weights and inputs tried, the model's output is not finite, or so "
                "unstable that rounding errors change it: nothing can be proven about the model."
            )
        if attempt != self._good[0]:
            self._go_back(*self._good)
        self.worst = max(self.worst, check_another_batch(self.model, self.generator))
        self._train()

    def _draw(self, attempt: int) -> None:
        model, generator = self.model, self.generator
        before = generator.get_state()
        if self._good is None or self._good[2] is model.examples or needs_fitting(model, attempt):
            output = redraw(model, attempt, generator)
            if output is None:
                return
        else:
            draw_anew(model, attempt, generator)
            output = None  # it is time enough when there is anything to see
        seen: set[Pair] = set()
        with suppress(SpecError):
            if self._good is not None and not (seen := self._seen_anew(output)):
                return  # permuted, it would only be the same evidence once more
            output = output or output_of(model)
        if output is None or is_chaotic(model, output, generator):
            return
        self._good, self.evaluation = (attempt, before, model.inputs), output
        self.worst = max(self.worst, check_invariance(model, output, generator))
        self.pending -= seen or sensitive_pairs(model, self.pending, generator, output)

    def _go_back(self, attempt: int, state: Tensor, inputs: list[Example]) -> None:
        """Draw once more what was drawn for the present outputs."""
        self.generator.set_state(state)
        if needs_fitting(self.model, attempt):
            redraw(self.model, attempt, self.generator)
        else:
            draw_anew(self.model, attempt, self.generator)
        self.model.inputs = inputs

    def _seen_anew(self, output: Outputs | None) -> set[Pair]:
        return sensitive_pairs(self.model, self.pending, self.generator, output, by_trial=False)

    def look_elsewhere(self) -> bool:
        """Draw other inputs, more at once where the model takes more; whether it runs on them.

        From then on there are outputs of evaluation mode only.
        """
        model, generator = self.model, self.generator
        entries = sum(x.numel() for x in tree_leaves(model.examples) if isinstance(x, Tensor))
        for more in (_MANY if entries <= _SMALL else _SOME, 0):
            wide = [with_another_batch(example, more) for example in model.examples]
            model.inputs = draw_inputs(model, wide, 0, generator)
            output = run_or_none(model)
            if output is not None and not is_chaotic(model, output, generator):
                self.evaluation, self.training = output, None
                return True
        return False

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Inputs and outputs are afterwards what they were before."""
        own, inputs = dict(vars(self)), self.model.inputs
        try:
            yield
        finally:
            vars(self).update(own)
            self.model.inputs = inputs

    def _run_in_training(self) -> None:
        self.model.training = True
        self.training = run_or_none(self.model)
        self.model.training = False
        found = self.training
        self.alike = found is not None and relative_change(found, self.evaluation) == 0.0

    def _train(self) -> None:
        """Check invariance in training mode, if it can be; what matters there is struck off."""
        self._run_in_training()
        if self.training is None or self.alike:
            return
        model = self.model
        model.training = True
        self.training, worst = check_where_it_runs(model, self.training, self.generator)
        self.worst = max(self.worst, worst)
        if self.training is not None:
            self.pending -= sensitive_pairs(model, self.pending, self.generator, self.training)
        model.training = False
