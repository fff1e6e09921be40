"""Moments that contradict all others', and moments that are too large."""

import pytest
import torch

from fedma_flwr.averaging import Averaging, ClientUpdate, Limits, contrary_moments, judge
from fedma_flwr.averaging.moment_limits import at_most_usual
from tests.averaging.test_head_moments import moments_of
from tests.toy import SPEC


def blobs(seed, classes, n=60, shift=0):
    """Examples around a point for each class; `shift` calls every class by a later one's number."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor(classes)[torch.randint(0, len(classes), (n,), generator=generator)]
    noise = 0.3 * torch.randn(n, 3, generator=generator).double()
    return torch.eye(3).double()[labels] + noise, (labels + shift) % 3


@pytest.mark.parametrize(
    "change",
    [
        lambda phi, y: (phi, (y + 1) % 3),
        lambda phi, y: (3 * phi, (y + 1) % 3),
        lambda phi, y: (-phi, y),
    ],
    ids=["wrong classes", "large and wrong", "inverted"],
)
@pytest.mark.parametrize("liars", [1, 2])
def test_whose_classes_look_like_others_is_contrary(change, liars):
    honest = [blobs(seed, [0, 1, 2]) for seed in range(7)]
    examples_of = [change(*pair) for pair in honest[:liars]] + honest[liars:]
    updates = {
        n: ClientUpdate({}, 60.0, None, moments_of(*pair)) for n, pair in enumerate(examples_of)
    }

    found = contrary_moments(at_most_usual(updates))

    assert sorted(found) == list(range(liars))
    assert "contradict" in found[0]


def test_honest_clients_are_not_contrary():
    skewed = [[0], [0, 1], [1, 2], [2], [0, 1, 2], [1]]
    updates = {
        n: ClientUpdate({}, 60.0, None, moments_of(*blobs(n, classes)))
        for n, classes in enumerate(skewed)
    }

    assert contrary_moments(updates) == {}
    assert contrary_moments({0: updates[0]}) == {}
    assert contrary_moments({0: updates[0], 1: ClientUpdate({}, 1.0, None)}) == {}


def test_a_majority_is_never_refused():
    pairs = [blobs(0, [0, 1, 2]), blobs(1, [0, 1, 2], shift=1), blobs(2, [0, 1, 2], shift=2)]
    updates = {n: ClientUpdate({}, 60.0, None, moments_of(*pair)) for n, pair in enumerate(pairs)}

    assert len(contrary_moments(updates)) <= 1


def test_a_claim_of_most_examples_does_not_turn_the_others_into_liars():
    honest = {n: ClientUpdate({}, 60.0, None, moments_of(*blobs(n, [0, 1, 2]))) for n in range(5)}
    liar = ClientUpdate({}, 2.0**53, None, moments_of(*blobs(5, [0, 1, 2], shift=1)))
    limits = Limits.of(10.0, None, robust=True)

    kept, refused = judge(SPEC, {**honest, 5: liar}, {}, limits, Averaging("trimmed_mean"))

    assert (list(kept), list(refused)) == ([0, 1, 2, 3, 4], [5])


def test_larger_inputs_than_usual_count_as_usual_ones_do_with_a_robust_average():
    phi, y = blobs(0, [0, 1, 2])
    sizes = {0: 1.0, 1: 1.0, 2: 3.0}
    updates = {n: ClientUpdate({}, 60.0, None, moments_of(s * phi, y)) for n, s in sizes.items()}

    scaled = at_most_usual(updates)

    assert scaled[0] is updates[0]
    torch.testing.assert_close(scaled[2].moments.gram, updates[0].moments.gram)
    torch.testing.assert_close(scaled[2].moments.cross, updates[0].moments.cross)


def test_a_client_that_alone_has_a_class_is_not_contrary():
    phi = torch.eye(3).double().repeat(10, 1)
    labels = torch.arange(3).repeat(10)
    common, rare = labels < 2, labels == 2
    updates = {
        0: ClientUpdate({}, 20.0, None, moments_of(phi[common], labels[common])),
        1: ClientUpdate({}, 20.0, None, moments_of(phi[common], labels[common])),
        2: ClientUpdate({}, 10.0, None, moments_of(phi[rare], labels[rare])),
    }

    assert contrary_moments(updates) == {}


def test_where_others_know_one_class_only_nobody_is_contrary():
    updates = {
        n: ClientUpdate({}, 60.0, None, moments_of(*blobs(n, [0] * 50 + [1]))) for n in range(5)
    }

    assert contrary_moments(updates) == {}
