"""One stage of a network with a single group, settled with a matcher that does as it is told."""

import numpy as np
import torch

from fedma_flwr.averaging import settle_stage
from fedma_flwr.matching import Matching
from fedma_flwr.structure import PermutationSpec, StagePlan

SPEC = PermutationSpec(
    groups={"h": 2}, axes={"a.weight": "h, 1", "a.bias": "h", "b.weight": "2, h", "b.bias": "2"}
)


def tensors(**values):
    return {name.replace("_", "."): torch.tensor(value) for name, value in values.items()}


def fixed(*assignments, width):
    """A matcher that returns these assignments, whatever the units."""

    class Fixed:
        output = "mean"

        def match(self, units, *, weights=None, max_width=None, seed=0):
            arrays = tuple(np.array(a) for a in assignments)
            popularity = np.bincount(np.concatenate(arrays), minlength=width)
            return Matching(arrays, np.zeros((width, units[0].shape[1])), popularity, 0.0, 0)

    return Fixed()


def settle(spec, updates, matcher, stage=0, matched=(), **options):
    plan = StagePlan.build(spec)
    return settle_stage(
        spec,
        plan[stage],
        updates,
        matched=frozenset(matched),
        matcher=matcher,
        max_widths=dict.fromkeys(spec.groups, 100),
        **options,
    )
