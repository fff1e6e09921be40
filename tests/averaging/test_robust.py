"""Robust averages: hand-computed, against a slow reference, and what they promise."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedma_flwr.averaging import AVERAGES, Averaging, head, robust
from fedma_flwr.matching import BBPMAP
from tests.toy import SPEC as TOY
from tests.toy import LayerwiseFedMA

MEDIAN = Averaging("median")


def column(numbers):
    return [torch.tensor([float(number)], dtype=torch.float64) for number in numbers]


def trimmed(values, weights, cut):
    return float(robust.trimmed_means(column(values), column(weights), torch.tensor([float(cut)])))


def combine(averaging, values, weights=None, cohort_weight=None):
    masses = column(weights or [1] * len(values))
    return float(averaging.combine(column(values), masses, cohort_weight))


@pytest.mark.parametrize(
    ("values", "weights", "expected"),
    [
        ([1, 2, 100], None, 2),
        ([1, 2, 4, 100], None, 3),  # the middle of the two in the middle
        ([7], None, 7),
        ([1, 9], None, 5),  # two clients: nobody can tell which of them is right
        ([1, 2, 100], [1, 1, 3], 100),
        ([1, 2, 100], [1, 1, 2], 51),  # the weight splits evenly between 2 and 100
        ([5, 1, -9], [1, 1, 0], 3),  # who does not hold the entry has no say
        ([5, 1], [0, 0], 0),
    ],
)
def test_weighted_median(values, weights, expected):
    assert trimmed(values, weights or [1] * len(values), 100) == expected


@pytest.mark.parametrize(
    ("values", "cut", "expected"),
    [
        ([1, 2, 3, 4, 100], 1, 3),
        ([1, 2, 3, 4, 100], 0, 22),
        ([1, 2, 3, 4, 100], 0.5, 119 / 8),  # (1 + 2*2 + 2*3 + 2*4 + 100) / 8
        ([1, 2, 100], 2, 2),  # nothing is left: the median
        ([1, 2, 3, 4, 5, 100], 2, 3.5),
    ],
)
def test_trimmed_mean(values, cut, expected):
    assert trimmed(values, [1] * len(values), cut) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("values", "share", "cohort", "expected"),
    [
        # Median 3, distances 2, 1, 0, 1, 97, usually 1: 1 is near, 100 is far and cut off already.
        ([1, 2, 3, 4, 100], 0.2, None, 2.5),
        # 0.4 of five clients are two: one was far, one more is cut at either end.
        ([1, 2, 3, 4, 100], 0.4, None, 2.5),
        # The same without symmetry: 2 and 3 are left.
        ([1, 2, 3, 7, 100], 0.4, None, 2.5),
        # Three of ten hold the entry: 100 is far, and one of the other two may be hostile.
        ([1, 2, 100], 0.2, 10, 1.5),
        ([1, 2, 4, 5], 0.2, 10, 3),
    ],
)
def test_who_is_far_has_no_say(values, share, cohort, expected):
    averaging = Averaging("trimmed_mean", share)
    assert combine(averaging, values, None, cohort) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("values", "weights", "near"),
    [
        # Median 2, distances 1, 0, 1, 2: usually 1 (the upper one of two), so that 2 is not far.
        ([1, 2, 3, 4], [2, 3, 1, 1], [True, True, True, True]),
        ([1, 2, 3, 4.01], [2, 3, 1, 1], [True, True, True, False]),
        # However little it weighs, and however much: it is the distance that counts.
        ([1, 2, 3, 100], [1, 1, 1, 0.001], [True, True, True, False]),
        ([1, 2, 3, 4, 9], [1, 20, 20, 1, 1], [True, True, True, True, False]),
        ([7], [5], [True]),
        ([1, 2], [0, 0], [True, True]),
    ],
)
def test_near_is_up_to_twice_the_usual_distance(values, weights, near):
    assert robust.near_the_median(column(values), column(weights)) == near


def test_the_distance_is_a_root_mean_square_over_what_a_client_holds():
    """Beside the median, 0, the third client has (3, 4): a distance of sqrt(12.5), or of 4."""
    tensors = [torch.tensor([1.0, -1.0]), torch.tensor([-1.0, 1.0]), torch.tensor([3.0, 4.0])]
    tensors += [torch.zeros(2)] * 2
    everything = [torch.ones(2)] * 5
    distances = [1.0, 1.0, 12.5**0.5, 0.0, 0.0]
    assert sorted(distances)[2] == 1.0
    assert robust.near_the_median(tensors, everything) == [True, True, False, True, True]
    small = [*tensors[:2], torch.tensor([1.9, 9.0]), *tensors[3:]]
    holds_one = [*everything[:2], torch.tensor([1.0, 0.0]), *everything[3:]]
    assert robust.near_the_median(small, holds_one) == [True] * 5
    assert robust.near_the_median(small, everything)[2] is False


def test_a_fifth_is_cut_off_unless_told_otherwise():
    assert Averaging("trimmed_mean") == Averaging("trimmed_mean", 0.2)
    assert Averaging() == Averaging("mean", 0.2)


def test_zeros_between_weights_of_either_sign_have_no_say():
    """No tail has them: by entries they are the middle."""
    generator = torch.Generator().manual_seed(0)
    center = torch.randn(50, 4, generator=generator).double()
    honest = [center + 0.1 * torch.randn(50, 4, generator=generator) for _ in range(5)]
    hostile = [torch.zeros(50, 4).double()] * 2
    ones = [torch.ones(())] * 7
    found = Averaging("trimmed_mean", 2 / 7).combine(honest + hostile, ones, 7.0)
    torch.testing.assert_close(found, torch.stack(honest).mean(0))


def test_a_unit_that_only_far_clients_hold_is_kept():
    values = [torch.tensor([1.0, 0.0]), torch.tensor([1.5, 0.0]), torch.tensor([-90.0, 7.0])]
    weights = [torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])]
    assert MEDIAN.combine(values, weights).tolist() == [1.25, 7.0]


def test_units_are_scaled_down_to_the_usual_size():
    """Usual is the median of the clients' largest: of 5, 5 and 50."""
    small = {"w": torch.tensor([[3.0, 4.0], [0.0, 0.0]]), "n": torch.tensor([9, 9])}
    large = {"w": torch.tensor([[30.0, 40.0], [1.0, 2.0]]), "n": torch.tensor([9, 99])}
    *rest, last = robust.scale_down([small, small, large], ["w"])
    assert all(torch.equal(tensors["w"], small["w"]) for tensors in rest)
    torch.testing.assert_close(last["w"], torch.tensor([[3.0, 4.0], [1.0, 2.0]]))
    assert torch.equal(last["n"], large["n"])


def test_a_single_number_is_scaled_down_too():
    numbers = [{"s": torch.tensor(value)} for value in (2.0, -2.0, -9.0)]
    assert [tensors["s"].item() for tensors in robust.scale_down(numbers, ["s"])] == [2, -2, -2]


def test_small_biases_beside_zeros_keep_their_size():
    zeros = {"b": torch.zeros(2)}
    *_, last = robust.scale_down([zeros, zeros, {"b": torch.tensor([0.1, -5.0])}], ["b"])
    torch.testing.assert_close(last["b"], torch.tensor([0.1, -0.1]))


def slow(values, weights, tenths):
    """Every client is repeated as often as it weighs; weights are integers."""
    pairs = zip(values, weights, strict=True)
    entries = sorted(v for v, w in pairs for _ in range(10 * w))
    if not entries:
        return 0.0
    cut = tenths
    if 2 * cut >= len(entries):
        return float(np.median(entries))
    return float(np.mean(entries[cut : len(entries) - cut]))


@settings(max_examples=200, deadline=None)
@given(
    entries=st.lists(st.tuples(st.integers(-50, 50), st.integers(0, 4)), min_size=1, max_size=7),
    tenths=st.integers(0, 60),
)
def test_it_agrees_with_the_definition(entries, tenths):
    values, weights = zip(*entries, strict=True)
    found = trimmed(values, weights, tenths / 10)
    # Of sums in float32: values of up to 50 cancel.
    assert found == pytest.approx(slow(values, weights, tenths), abs=1e-4)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), hostile=st.integers(0, 2), share=st.sampled_from([0.2, 0.4]))
def test_a_minority_cannot_leave_the_range_of_the_honest(seed, hostile, share):
    rng = np.random.default_rng(seed)
    honest = rng.normal(size=(5, 3, 2))
    poison = rng.choice([-1e9, 1e9, 0.0], size=(hostile, 3, 2))
    stacked = [torch.tensor(v) for v in rng.permutation(np.concatenate([honest, poison]))]
    ones = [torch.ones(())] * len(stacked)
    for averaging in (MEDIAN, Averaging("trimmed_mean", max(share, hostile / len(stacked)))):
        found = averaging.combine(stacked, ones, float(len(stacked))).numpy()
        assert (honest.min(0) <= found + 1e-12).all()
        assert (found - 1e-12 <= honest.max(0)).all()


def test_blocks_do_not_matter(monkeypatch):
    tensors = list(torch.randn(5, 40, 3))
    weights = [torch.rand(40, 1) for _ in tensors]
    averaging = Averaging("trimmed_mean", 0.3)
    whole = averaging.combine(tensors, weights, 3.0)
    monkeypatch.setattr(robust, "_BLOCK", 50)
    found = averaging.combine(tensors, weights, 3.0)
    torch.testing.assert_close(found, whole, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("kind", AVERAGES)
@pytest.mark.parametrize("shape", [(0,), (0, 2), (2, 0), ()])
def test_tensors_without_numbers_and_single_numbers_have_an_average(kind, shape):
    found = Averaging(kind).combine([torch.ones(shape)] * 3, [torch.ones(())] * 3, 3.0)
    assert torch.equal(found, torch.ones(shape, dtype=torch.float64))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"averaging": "krum"}, "averaging was 'krum'"),
        ({"averaging": "trimmed_mean", "trimmed_share": 0.5}, "trimmed_share was 0.5"),
        ({"trimmed_share": -0.1}, "trimmed_share was -0.1"),
        ({"trimmed_share": float("nan")}, "trimmed_share was nan"),
        ({"averaging": "median", "matcher": BBPMAP.reference()}, "output='mean'"),
        ({"averaging": "centred_clipping", "matcher": BBPMAP.reference()}, "output='mean'"),
    ],
)
def test_bad_options_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        LayerwiseFedMA(spec=TOY, **options)


def test_a_reference_matcher_with_mean_output_may_be_robust():
    LayerwiseFedMA(spec=TOY, averaging="median", matcher=BBPMAP.reference(output="mean"))


def test_no_count_exceeds_the_median_of_who_has_the_class():
    counts = torch.tensor([[9.0, 0.0, 5.0], [1.0, 0.0, 0.0], [3.0, 0.0, 0.0], [1e9, 0.0, 1e9]])
    capped = [[3.0, 0.0, 5.0], [1.0, 0.0, 0.0], [3.0, 0.0, 0.0], [3.0, 0.0, 5.0]]
    assert head.cap_counts(counts).tolist() == capped
