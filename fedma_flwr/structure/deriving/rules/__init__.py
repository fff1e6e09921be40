"""One rule for each operator: which permutations of its inputs become which of its outputs.

Importing this package fills the table `RULES`, by operator name. A rule may only unite, refine or
pin axes; whatever it returns must be permuted exactly as the operator would permute it.
"""

from fedma_flwr.structure.deriving.rules import (
    attention,
    complex_numbers,
    convolution,
    elementwise,
    indexing,
    losses,
    matrices,
    normalisation,
    products,
    quantisation,
    random_numbers,
    recurrent,
    reductions,
    scattering,
    shapes,
)
from fedma_flwr.structure.deriving.rules.call import RULES, Call, Stack

__all__ = [
    "RULES",
    "Call",
    "Stack",
    "attention",
    "complex_numbers",
    "convolution",
    "elementwise",
    "indexing",
    "losses",
    "matrices",
    "normalisation",
    "products",
    "quantisation",
    "random_numbers",
    "recurrent",
    "reductions",
    "scattering",
    "shapes",
]
