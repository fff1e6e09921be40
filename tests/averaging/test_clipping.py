"""Centred clipping: hand-computed, against a slow reference, and what it promises."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedma_flwr.averaging import Averaging, ClientUpdate, clipping, settle_stage
from fedma_flwr.matching import BBPMAP, IdentityMatching
from fedma_flwr.structure import PermutationSpec, StagePlan

CLIPPING = Averaging("centred_clipping")


def column(numbers):
    return [torch.tensor([float(number)], dtype=torch.float64) for number in numbers]


def clipped(values, weights=None, cohort_weight=None):
    masses = column(weights or [1] * len(values))
    return float(CLIPPING.combine(column(values), masses, cohort_weight))


@pytest.mark.parametrize(
    ("values", "weights", "steps", "expected"),
    [
        # Median 2, distances 2, 1, 0, 4, 8, of which the median is 2: -2 - 1 + 0 + 2 + 2 = 1.
        # From 2.2 on 2.2, 1.2, 0.2, 3.8, 7.8, radius 2.2: -2.2 - 1.2 - 0.2 + 2.2 + 2.2 = 0.8.
        ([0, 1, 2, 6, 10], None, 1, 2.36),
        # At 3 the deviations cancel: -3 - 2 - 1 + 3 + 3 = 0.
        ([0, 1, 2, 6, 10], None, 200, 3.0),
        # However far the last one is, it is as far as the median client.
        ([0, 1, 2, 6, 1e9], None, 200, 3.0),
        ([1, 2, 3, 4, 100], None, 8, 3.0),
        # Weights count in the mean, not in the radius: median 1, distances 1, 0, 3, radius 1.
        ([0, 1, 4], [1, 3, 1], 8, 1.0),
        # From the median, 1, by (-1 + 2 * 1) / 5, then by (-1.2 - 2 * 0.2 + 2 * 1.2) / 5.
        ([0, 1, 4], [1, 2, 2], 1, 1.36),
        # Nobody can tell which of two is right; a sole holder has its way.
        ([1, 9], None, 8, 5.0),
        ([7], None, 8, 7.0),
        ([5, 1, -9], [1, 1, 0], 8, 3.0),
        ([5, 1], [0, 0], 8, 0.0),
        # Where most agree exactly, nothing moves them.
        ([2, 2, 2, 50, -70], None, 8, 2.0),
    ],
)
def test_deviations_are_shortened_to_the_median_one(monkeypatch, values, weights, steps, expected):
    monkeypatch.setattr(clipping, "STEPS", steps)
    assert clipped(values, weights) == pytest.approx(expected, abs=1e-6)


def test_a_client_is_shortened_as_a_whole():
    """Of two holders of the second unit, the one that is far in the first has little say there.

    Medians 0 and 5; distances 0, 0, 5 / sqrt(2), sqrt((40^2 + 5^2) / 2), where the first two hold
    the first unit only. With a radius of 0 neither of the others is followed.
    """
    values = [torch.tensor([0.0, 0.0])] * 2
    values += [torch.tensor([0.0, 0.0]), torch.tensor([40.0, 10.0])]
    both, first = torch.ones(2), torch.tensor([1.0, 0.0])
    spread = [torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 0.0]), *values[2:]]
    found = CLIPPING.combine(spread, [first, first, both, both], 4.0)
    assert 0.0 <= float(found[1]) < 2.5  # the mean of the two is 5, as is their median
    assert abs(float(found[0])) < 1.0


def test_a_unit_of_one_client_is_kept_as_it_is():
    values = [torch.tensor([1.0, 0.0]), torch.tensor([1.5, 0.0]), torch.tensor([-90.0, 7.0])]
    weights = [torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])]
    found = CLIPPING.combine(values, weights, 3.0)
    assert float(found[1]) == 7.0
    assert 0.5 < float(found[0]) < 1.5


def middle(pairs):
    """The weighted median of (value, weight) with whole weights."""
    return float(np.median([value for value, weight in pairs for _ in range(weight)]))


def slow_shares(values, weights, centre):
    """Cosines by loops; those below three times what chance makes of them are no likeness."""
    entries, clients = range(len(centre)), range(len(values))
    chance = 9 / len(centre)
    if chance >= 1:
        return [1.0 for _ in clients]
    away = [[weights[j][i] ** 0.5 * (values[j][i] - centre[i]) for i in entries] for j in clients]
    size = [sum(x * x for x in row) ** 0.5 or 1.0 for row in away]
    shares = []
    for j in clients:
        together = 1.0
        for k in clients:
            cosine = sum(a * b for a, b in zip(away[j], away[k], strict=True)) / size[j] / size[k]
            if k != j and cosine > 0:
                together += max(0.0, (cosine**2 - chance) / (1 - chance))
        shares.append(1 / together)
    return shares


def slow(values, weights, steps):
    """Entry by entry and client by client; each client holds an entry with a whole weight."""
    entries = range(len(values[0]))
    clients = [j for j in range(len(values)) if sum(weights[j])]
    held = [[(values[j][i], weights[j][i]) for j in clients] for i in entries]
    centre = [middle(pairs) if any(w for _, w in pairs) else 0.0 for pairs in held]
    shares = [1.0] * len(values)
    for step in range(2 * steps if clients else 0):
        if step == steps:
            shares = slow_shares(values, weights, centre)
        far = {}
        for j in clients:
            squares = sum(weights[j][i] * (values[j][i] - centre[i]) ** 2 for i in entries)
            far[j] = (squares / sum(weights[j])) ** 0.5
        radius = sorted(far.values())[(len(clients) - 1) // 2]
        moved = list(centre)
        for i in entries:
            total = sum(shares[j] * weights[j][i] for j in clients)
            for j in clients:
                shorter = 1.0 if far[j] <= radius else radius / far[j]
                if weights[j][i]:
                    say = shares[j] * weights[j][i] / total
                    moved[i] += shorter * say * (values[j][i] - centre[i])
        centre = moved
    return centre


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    clients=st.integers(1, 6),
    entries=st.sampled_from([1, 2, 4, 9, 10, 15, 30]),
    copies=st.integers(0, 3),
)
def test_it_agrees_with_the_definition(seed, clients, entries, copies):
    rng = np.random.default_rng(seed)
    values = rng.integers(-20, 21, (clients, entries))
    values = np.concatenate([values, np.repeat(values[:1] + 1, copies, axis=0)])
    weights = rng.integers(0, 4, values.shape)
    found = CLIPPING.combine([*torch.tensor(values)], [*torch.tensor(weights)], 1.0).tolist()
    assert found == pytest.approx(slow(values.tolist(), weights.tolist(), clipping.STEPS), abs=1e-5)


def test_clients_that_deviate_alike_count_as_one():
    """Around 0 three clients go one way, one goes the opposite way, two go ways of their own."""
    ways = torch.eye(20, dtype=torch.float64)
    values = [ways[0], 5 * ways[0], ways[0], -ways[0], ways[1], ways[2]]
    ones = [torch.ones(20, dtype=torch.float64)] * 6
    shares = clipping.distinct_shares(values, ones, torch.zeros(20).double())
    assert shares == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1, 1, 1])


def test_what_chance_makes_is_no_likeness():
    """A cosine of 0.8: 0.64, of which 9 / 36 may be chance, is (0.64 - 0.25) / 0.75 = 0.52."""
    first, second = torch.zeros(36).double(), torch.zeros(36).double()
    first[0], second[0], second[1] = 2.0, 0.8, 0.6
    ones = [torch.ones(36, dtype=torch.float64)] * 2
    shares = clipping.distinct_shares([first, second], ones, torch.zeros(36).double())
    assert shares == pytest.approx([1 / 1.52] * 2)


def test_few_numbers_have_few_directions():
    values = [torch.full((9,), float(number)).double() for number in (1, 2, 3)]
    ones = [torch.ones(9, dtype=torch.float64)] * 3
    assert clipping.distinct_shares(values, ones, torch.zeros(9).double()) == [1.0] * 3


def test_copies_of_a_client_do_not_take_its_say_away():
    """Mimicry: who copies the one client that knows something does not change the average."""
    rng = np.random.default_rng(1)
    honest = [*torch.tensor(rng.normal(size=(8, 200)))]
    plain, copied = (
        CLIPPING.combine(clients, [torch.ones(())] * len(clients), 1.0)
        for clients in (honest, [*honest, honest[0], honest[0]])
    )
    mean = torch.stack([*honest, honest[0], honest[0]]).mean(0)
    middle_ = torch.stack(honest).mean(0)
    assert float((copied - plain).norm()) < 0.5 * float((mean - middle_).norm())


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_order_of_clients_and_of_units_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(6, 4, 3))
    weights = rng.integers(0, 2, size=(6, 4, 1))
    clients, units = rng.permutation(6), rng.permutation(4)

    def combine(values, weights):
        return CLIPPING.combine([*torch.tensor(values)], [*torch.tensor(weights)], 6.0)

    plain = combine(values, weights)
    torch.testing.assert_close(combine(values[clients], weights[clients]), plain)
    torch.testing.assert_close(combine(values[:, units], weights[:, units]), plain[units])


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), hostile=st.integers(1, 3), size=st.sampled_from([0.0, 3.0, 1e9]))
def test_a_minority_cannot_lead_it_far_from_the_honest(seed, hostile, size):
    """Not further than the honest client that is furthest from their mean, however it tries."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(size=(7, 8, 5))
    direction = rng.normal(size=(8, 5))
    poison = size * direction + 1e-3 * rng.normal(size=(hostile, 8, 5))
    stacked = [*torch.tensor(np.concatenate([honest, poison]))]
    found = CLIPPING.combine(stacked, [torch.ones(())] * len(stacked), float(len(stacked))).numpy()
    spread = np.linalg.norm(honest - honest.mean(0), axis=(1, 2)).max()
    assert np.linalg.norm(found - honest.mean(0)) < spread


def test_a_little_is_not_enough():
    """Poison between the honest moves a median further than it moves centred clipping."""
    rng = np.random.default_rng(0)
    honest = rng.normal(size=(8, 400))
    little = honest.mean(0) - 1.5 * honest.std(0)
    stacked = [*torch.tensor(np.concatenate([honest, [little] * 2]))]
    moved = {
        kind: np.linalg.norm(
            Averaging(kind).combine(stacked, [torch.ones(())] * 10, 10.0).numpy() - honest.mean(0)
        )
        for kind in ("mean", "median", "trimmed_mean", "centred_clipping")
    }
    assert moved["centred_clipping"] < min(moved["mean"], moved["median"], moved["trimmed_mean"])


def test_running_variances_are_those_of_the_median():
    """Shortened means and squares need not go together: a variance of 0 would blow up a norm."""
    axes = {"w": "h, 1", "n.running_mean": "h", "n.running_var": "h", "out": "1, h"}
    statistics = ["n.running_mean", "n.running_var"]
    spec = PermutationSpec(groups={"h": 4}, axes=axes, statistics=statistics)
    generator = torch.Generator().manual_seed(0)

    def update():
        mean = 10 * torch.randn(4, generator=generator)
        variance = torch.rand(4, generator=generator)
        tensors = {"w": torch.ones(4, 1), "n.running_mean": mean, "n.running_var": variance}
        return ClientUpdate(tensors, 1.0)

    updates = [update() for _ in range(6)]

    def settle(kind):
        stage = StagePlan.build(spec, reestimate_statistics=False)[0]
        return settle_stage(
            spec,
            stage,
            updates,
            matched=frozenset(),
            matcher=IdentityMatching(),
            max_widths={"h": 4},
            averaging=Averaging(kind),
        ).tensors

    clipped_, median = settle("centred_clipping"), settle("median")
    for name in statistics:
        assert torch.equal(clipped_[name], median[name])
    assert bool((clipped_["n.running_var"] > 0).all())


def test_units_are_matched_before_they_are_clipped():
    """Clients with the same units in other orders; one of five sends them ten times as large."""
    spec = PermutationSpec(groups={"h": 3}, axes={"a.weight": "h, 3", "b.weight": "2, h"})
    incoming, outgoing = 3 * torch.eye(3), torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    updates = []
    for number in range(5):
        order, times = torch.arange(3).roll(number), 10.0 if number == 4 else 1.0
        tensors = {"a.weight": times * incoming[order], "b.weight": outgoing[:, order]}
        updates.append(ClientUpdate(tensors, 1.0))
    outcome = settle_stage(
        spec,
        StagePlan.build(spec)[0],
        updates,
        matched=frozenset(),
        matcher=BBPMAP(),
        max_widths={"h": 6},
        averaging=CLIPPING,
    )
    assert outcome.widths == {"h": 3}
    found = outcome.tensors["a.weight"]
    torch.testing.assert_close(found[found.argmax(1).argsort()], incoming)
