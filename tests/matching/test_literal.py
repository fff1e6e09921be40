"""The engine against a slow, literal float64 transcription of the formulas."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from fedma_flwr.matching import BBPMAP, products, search


class Literal:
    """The formulas, row by row and unit by unit, with units moved as the reference moves them."""

    def __init__(self, units, matcher, mean):
        self.units = [np.asarray(u, dtype=np.float64) for u in units]
        self.matcher, self.mean = matcher, np.asarray(mean, dtype=np.float64)
        size = self.units[0].shape[1]
        self.local = np.full(size, float(matcher.local_variance))
        self.prior = np.full(size, float(matcher.prior_variance))
        self.members = []  # of every global unit: a list of (client, row)

    def sums(self, unit):
        return sum((self.units[c][row] for c, row in unit), np.zeros(len(self.mean)))

    def take_out(self, client):
        members = [[m for m in unit if m[0] != client] for unit in self.members]
        self.members = [unit for unit in members if unit]

    def put_back(self, client, columns):
        width = len(self.members)
        for row, column in enumerate(columns):
            if 0 <= column < width:
                self.members[column].append((client, row))
            else:
                self.members.append([(client, row)])

    def gain(self, client):
        rows, clients = self.units[client], len(self.units)
        gain = self.fixed(rows) if self.matcher.default_prior_mean == "zero" else self.spahm(rows)
        new = gain[:, -1:]
        prices = 2 * np.log(np.arange(1, self.new_slots(len(rows)) + 1))
        prices -= 2 * np.log(self.matcher.gamma / clients)
        weight = 1 if self.matcher.default_prior_mean == "zero" else 2
        popularity = np.minimum([len(unit) for unit in self.members], 10)
        existing = gain[:, :-1]
        if len(popularity):
            existing = existing + weight * np.log(popularity / (clients - popularity))
        return np.hstack([existing, new - prices])

    def new_slots(self, rows):
        width = len(self.members)
        soft = 700 if self.matcher.default_prior_mean == "zero" else 2 * rows
        slots = min(rows, max(soft - width, 1))
        if self.matcher.max_width is not None:
            slots = min(slots, self.matcher.max_width - width)
        return max(slots, rows - width)

    def fixed(self, rows):
        s, s0 = 1 / self.local, 1 / self.prior
        gain = np.empty((len(rows), len(self.members) + 1))
        for column, unit in enumerate([*self.members, []]):
            g, S = self.mean * s0 + self.sums(unit) * s, s0 + len(unit) * s
            for row, w in enumerate(rows):
                gain[row, column] = ((s * w + g) ** 2 / (s + S) - g**2 / S).sum()
        return gain

    def spahm(self, rows):
        sigma, sigma0, mu = self.local, self.prior, self.mean
        r = sigma0 / sigma
        gain = np.empty((len(rows), len(self.members) + 1))
        for column, unit in enumerate([*self.members, []]):
            n, S = len(unit), self.sums(unit)
            d, d1 = n * sigma0 + sigma, (n + 1) * sigma0 + sigma
            for row, w in enumerate(rows):
                x = w + S
                quadratic = (r * x**2 + 2 * mu * x) / d1 - (r * S**2 + 2 * mu * S) / d
                quadratic += np.log(d) - np.log(d1) + n * mu**2 / d - (n + 1) * mu**2 / d1
                gain[row, column] = quadratic.sum()
        return gain

    def refit(self):
        if not self.matcher.fit:
            return
        n = np.array([len(unit) for unit in self.members])[:, None]
        S = np.array([self.sums(unit) for unit in self.members])
        Q = sum((u**2).sum(0) for u in self.units)
        self.mean = (S / n).mean(0)
        local = (Q - (S**2 / n).sum(0)) / max(n.sum() - len(n), 1)
        prior = ((S / n - self.mean) ** 2).mean(0) - local * (1 / n).sum() / len(n)
        self.local, self.prior = np.maximum(local, 1e-10), np.maximum(prior, 1e-10)

    def assignments(self):
        out = [np.full(len(u), -1) for u in self.units]
        for number, unit in enumerate(self.members):
            for client, row in unit:
                out[client][row] = number
        return out

    def run(self, orders, choose):
        """Visit every client; ``choose(gain, width, stay)`` returns the columns."""
        first = sorted(range(len(self.units)), key=lambda c: -len(self.units[c]))
        for order in [first, *orders]:
            for client in order:
                before = self.assignments()[client]
                alone = [len(self.members[i]) == 1 if i >= 0 else True for i in before]
                number = np.cumsum([any(m[0] != client for m in u) for u in self.members]) - 1
                self.take_out(client)
                width = len(self.members)
                stay = [width if a else number[i] for i, a in zip(before, alone, strict=True)]
                self.put_back(client, choose(self.gain(client), width, np.array(stay)))
            self.refit()
        return self.assignments()


def best(gain, width, stay):
    return linear_sum_assignment(gain, maximize=True)[1]


def prior_mean(units, matcher):
    return 0.0 if matcher.default_prior_mean == "zero" else np.vstack(units).mean(0)


MATCHERS = [
    BBPMAP.reference(),
    BBPMAP.reference(gamma=0.5, local_variance=0.3, prior_variance=2.0),
    BBPMAP.learned(fit=False),
    BBPMAP.learned(gamma=2.0),
]


# From this length of signatures on the products are in float32: all, or none here. Where they are,
# assignments are certified, at first only (0) or however many rows want to move (1).
SINGLE = pytest.mark.parametrize(("long", "movable"), [(1, 0.0), (1, 1.0), (256, 1.0)])


@SINGLE
@pytest.mark.parametrize("matcher", MATCHERS)
@pytest.mark.parametrize("seed", range(6))
def test_assignments_equal_the_literal_ones(monkeypatch, matcher, seed, long, movable):
    monkeypatch.setattr(products, "_LONG", long)
    monkeypatch.setattr(search, "_MOVABLE", movable)
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(6, 8))
    widths = rng.integers(1, 7, size=5)
    units = [rng.permutation(shared)[:w] + 0.3 * rng.normal(size=(w, 8)) for w in widths]
    orders = [rng.permutation(5) for _ in range(5)]
    mean = np.broadcast_to(prior_mean(units, matcher), 8)

    matching = matcher.match(units, orders=orders)

    literal = Literal(units, matcher, mean).run(orders, best)
    for ours, theirs in zip(matching.assignments, literal, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@st.composite
def clients_units(draw):
    """Units with everything that is awkward: ties, offsets, constants, scales, unequal widths."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    size = draw(st.integers(1, 6))
    pool = rng.normal(size=(draw(st.integers(1, 6)), size))
    pool *= draw(st.sampled_from([1.0, 1e-6, 1e6]))
    if draw(st.booleans()):
        pool[:] = pool[:, :1]  # constant rows
    noise = draw(st.sampled_from([0.0, 0.1])) * np.abs(pool).max()
    widths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=5))
    return [
        pool[rng.integers(len(pool), size=w)] + noise * rng.normal(size=(w, size)) for w in widths
    ]


@settings(max_examples=80, deadline=None, derandomize=True)
@given(clients_units(), st.sampled_from(MATCHERS), st.booleans(), st.sampled_from([1, 256]))
def test_every_update_is_optimal_and_no_unit_is_dropped(units, matcher, fixed_width, long):
    """With ties the optimum is not unique, so the literal formulas audit each update instead."""
    if fixed_width:
        matcher = dataclasses.replace(matcher, max_width=max(map(len, units)))
    choices = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "_LONG", long)
        patch.setattr(search, "_MOVABLE", 1.0)
        choose = search.Search._choose

        def recording(*args):
            choices.append(choose(*args).copy())
            return choices[-1]

        patch.setattr(search.Search, "_choose", recording)
        matching = matcher.match(units, seed=3)
    played = iter(choices)

    def audit(gain, width, stay):
        # After the engine's early stop the grouping has to be optimal as it is.
        columns = np.array(next(played, stay))
        opened = (columns < 0) | (columns >= width)
        columns[opened] = width + np.arange(opened.sum())
        rows = np.arange(len(gain))
        optimum = gain[rows, best(gain, width, stay)].sum()
        tolerance = 1e-9 * len(gain) * max(1.0, np.abs(gain).max())
        assert gain[rows, columns].sum() >= optimum - tolerance
        return columns

    rng = np.random.default_rng(3)
    orders = [rng.permutation(len(units)) for _ in range(matcher.sweeps)]
    mean = np.broadcast_to(prior_mean(units, matcher), units[0].shape[1])
    literal = Literal(units, matcher, mean).run(orders, audit)

    for ours, theirs, own in zip(matching.assignments, literal, units, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert len(set(ours.tolist())) == len(own)
    if fixed_width:
        assert matching.width == matcher.max_width
    assert matching.popularity.sum() == sum(map(len, units))
    assert matching.popularity.min() >= 1
