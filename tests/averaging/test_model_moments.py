"""Moments of models of several widths: measured where they can be, else estimated."""

import pytest
import torch

from fedma_flwr.averaging.head_moments import HeadMoments, upper_triangle
from fedma_flwr.averaging.model_moments import Measured, ModelMoments

WHOLE, HALF = "whole", "half"
PLACES = {WHOLE: torch.arange(4), HALF: torch.tensor([0, 2])}


def moments_of(features, classes):
    y = torch.nn.functional.one_hot(classes, 3).double()
    wide = torch.cat([features, torch.ones(len(features), 1, dtype=torch.float64)], 1)
    return HeadMoments(upper_triangle(features.T @ features), y.T @ wide)


def client(seed, examples=30, noise=0.0):
    """A client's labels, the features of its half model, and the whole one's: a linear map."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(3, (examples,), generator=generator)
    half = torch.randn(examples, 2, generator=generator, dtype=torch.float64)
    half = half + classes[:, None]
    transfer = torch.tensor([[1.0, 0.5], [0.2, -1.0], [0.0, 2.0], [1.0, 1.0]]).double()
    whole = half @ transfer.T + torch.tensor([0.5, -1.0, 0.0, 2.0]).double()
    return classes, half, whole + noise * torch.randn(examples, 4, generator=generator).double()


def measured(models, seed, noise=0.0):
    classes, half, whole = client(seed, noise=noise)
    features = torch.cat([{WHOLE: whole, HALF: half}[model] for model in models], 1)
    return Measured(models, moments_of(features, classes), float(len(classes)))


def all_examples(model, seeds, noise=0.0):
    drawn = [client(seed, noise=noise) for seed in seeds]
    classes, half, whole = (torch.cat(parts) for parts in zip(*drawn, strict=True))
    return moments_of({WHOLE: whole, HALF: half}[model], classes)


def test_what_a_narrow_client_cannot_measure_is_exact_where_features_are_linear_in_its_own():
    sent = [measured((WHOLE, HALF), 0), measured((HALF,), 1), measured((HALF,), 2)]

    found = ModelMoments(sent, PLACES, 4).of(WHOLE)

    expected = all_examples(WHOLE, [0, 1, 2])
    torch.testing.assert_close(found.gram, expected.gram, rtol=5e-3, atol=0.3)
    torch.testing.assert_close(found.cross, expected.cross, rtol=5e-3, atol=0.3)


def test_what_the_regression_leaves_is_added_for_every_example():
    """By hand: one feature each, of two examples 1 and -1; the whole one is it plus or minus 1."""
    psi = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]).double()
    phi = psi + torch.tensor([[1.0], [1.0], [-1.0], [-1.0]]).double()
    classes = torch.tensor([0, 1, 0, 1])
    both = Measured((WHOLE, HALF), moments_of(torch.cat([phi, psi], 1), classes), 4.0)
    narrow = Measured((HALF,), moments_of(psi[:2], classes[:2]), 2.0)

    places = {WHOLE: torch.arange(1), HALF: torch.arange(1)}
    found = ModelMoments([both, narrow], places, 1).of(WHOLE)

    # Four examples have sum phi^2 = 8; the others count 2 (T psi)^2 = 2, and a rest of 1 each.
    assert float(found.gram) == pytest.approx(8 + 4, rel=1e-2)
    assert found.cross[:, 0].tolist() == pytest.approx([2 + 1, -2 - 1, 0], rel=1e-2)
    assert found.cross[:, 1].tolist() == [3.0, 3.0, 0.0]


def test_a_narrow_models_moments_are_those_of_all_who_have_measured_it():
    sent = [measured((WHOLE, HALF), 0), measured((HALF,), 1)]

    found = ModelMoments(sent, PLACES, 4).of(HALF)

    expected = all_examples(HALF, [0, 1])
    torch.testing.assert_close(found.gram, expected.gram)
    torch.testing.assert_close(found.cross, expected.cross)


def test_nothing_is_estimated_where_some_may_be_hostile():
    sent = [measured((WHOLE,), 0), measured((HALF,), 1)]

    for estimates in (True, False):  # without a client that has measured both, nothing can be
        found = ModelMoments(sent, PLACES, 4, estimates=estimates).of(WHOLE)
        torch.testing.assert_close(found.gram, all_examples(WHOLE, [0]).gram)


def test_a_model_that_nobody_has_measured_is_put_together_from_its_units():
    classes, half, _ = client(0)
    other = {**PLACES, "other": torch.tensor([1, 2])}
    sent = [
        Measured((HALF,), moments_of(half, classes), 30.0),
        Measured(("other",), moments_of(half, classes), 30.0),
    ]

    found = ModelMoments(sent, other, 4).of(WHOLE).square()

    once = moments_of(half, classes).square()
    assert float(found[-1, -1]) == 60
    # Unit 2 is held by both, units 0 and 1 by one each: they count as if all had them.
    torch.testing.assert_close(found[0, 0], 2 * once[0, 0])
    torch.testing.assert_close(found[2, 2], once[1, 1] + once[1, 1])
    assert float(found[0, 1]) == 0
    assert float(found[3].abs().sum()) == 0 or float(found[3, 3]) == 0
