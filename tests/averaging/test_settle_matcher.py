"""What a matcher is told when a stage settles, and what becomes of the means that it finds."""

from dataclasses import replace

import numpy as np
import torch

from fedma_flwr.averaging import ClientUpdate, RoundStart, settle_stage
from fedma_flwr.matching import IdentityMatching, Matching
from fedma_flwr.server.settings import max_width
from fedma_flwr.structure import PermutationSpec, StagePlan
from tests.averaging.settling import SPEC, fixed, settle, tensors


class Posterior:
    """Puts unit i of all clients together, and says what the posterior mean is: 7, 8, 9..."""

    output = "posterior"

    def match(self, units, *, weights=None, max_width=None, seed=0):
        same = tuple(np.arange(len(rows)) for rows in units)
        found = 7.0 + np.arange(units[0].size).reshape(units[0].shape)
        return Matching(same, found, np.full(len(units[0]), len(units)), 0.0, 0)


def test_posterior_means_take_the_place_of_averages():
    tensors_of = [tensors(a_weight=[[1.0], [2.0]], a_bias=[v, v]) for v in (1.0, 3.0)]
    updates = [ClientUpdate(each, 1.0) for each in tensors_of]
    found = settle(SPEC, updates, Posterior()).tensors
    # A unit's row is its weight, then its bias.
    assert found["a.weight"].tolist() == [[7.0], [9.0]]
    assert found["a.bias"].tolist() == [8.0, 10.0]
    assert found["a.bias"].dtype == torch.float32
    averaging = fixed([0, 1], [0, 1], width=2)
    assert settle(SPEC, updates, averaging).tensors["a.bias"].tolist() == [2.0, 2.0]


def test_posterior_means_wait_until_all_tensors_of_a_unit_settle():
    """A row is whole or not: of a unit whose bias settles later, the average is what counts."""
    stage = StagePlan.build(SPEC)[0]
    later = replace(stage, settles=("a.weight",))
    updates = [ClientUpdate(tensors(a_weight=[[1.0], [2.0]], a_bias=[v, v]), 1.0) for v in (1, 3.0)]
    outcome = settle_stage(
        SPEC,
        later,
        updates,
        matched=frozenset(),
        matcher=Posterior(),
        max_widths={"h": 10},
    )
    assert outcome.tensors.keys() == {"a.weight"}
    assert outcome.tensors["a.weight"].tolist() == [[1.0], [2.0]]


def test_a_matcher_is_told_what_it_needs():
    """One seed a group, weights only where units are weighted, and the cap of each group."""
    told = []

    class Told(IdentityMatching):
        def match(self, units, *, weights=None, max_width=None, seed=0):
            told.append((weights, max_width, seed, [rows.shape for rows in units]))
            return super().match(units)

    spec = PermutationSpec({"g": 2, "h": 3}, {"a": "g, 1", "b": "h, g", "c": "2, h"})
    updates = [
        ClientUpdate({"a": torch.ones(2, 1), "b": torch.ones(3, 2)}, examples)
        for examples in (2.0, 5.0)
    ]

    def settle_both(**options):
        told.clear()
        settle_stage(
            spec,
            StagePlan.build(spec, "all")[0],
            updates,
            matched=frozenset(),
            matcher=Told(),
            max_widths={"g": 4, "h": 6},
            **{"seed": 40, **options},
        )
        return [entry[:3] for entry in told]

    assert settle_both() == [(None, 4, 40), (None, 6, 41)]
    assert settle_both(weighted=True) == [([2.0, 5.0], 4, 40), ([2.0, 5.0], 6, 41)]
    assert told[1][3] == [(3, 2), (3, 2)]
    assert settle_both(saved={"g": IdentityMatching()}) == [(None, 6, 41)]


def test_seed_and_rate_have_defaults():
    seeds = []

    class Noting(IdentityMatching):
        def match(self, units, *, weights=None, max_width=None, seed=0):
            seeds.append(seed)
            return super().match(units)

    updates = [ClientUpdate(tensors(a_weight=[[1.0], [2.0]], a_bias=[8.0, 9.0]), 1.0)]
    past = tensors(a_weight=[[0.0], [0.0]], a_bias=[0.0, 0.0])
    start = RoundStart(past, [{"h": torch.arange(2)}], [{}], {})
    assert settle(SPEC, updates, Noting(), start=start).tensors["a.bias"].tolist() == [8.0, 9.0]
    assert seeds == [0]


def test_max_width():
    assert max_width(20, True, 1.5) == 30
    assert max_width(20, False, 1.5) == 20
    assert max_width(3, True, 1.0) == 3
    assert max_width(10, True, 1.1) == 11  # 10 * 1.1 is 11.000000000000002
    assert max_width(100, True, 1.15) == 115  # and 100 * 1.15 is 114.99999999999999
    assert max_width(10, True, 1.19) == 11
