"""The validation split: held-out training data in place of the test data."""

import numpy as np
import pytest
import torch

from fedma_flwr.tasks import get_task
from fedma_flwr.tasks.shakespeare import WINDOW, load
from fedma_flwr.tasks.validation import hold_out
from tests.tasks.configs import config

ROLES = {"num_roles": 2, "min_characters": 10_000, "test_share": 0.2, "stride": 1}


def pictures(count):
    return np.arange(count, dtype=np.uint8).reshape(count, 1, 1), np.arange(count) % 2


def test_nothing_is_held_out_by_default():
    train, test = pictures(8), pictures(2)

    assert hold_out(train, test, 0.0) == (train, test)


def test_a_share_of_each_class_is_held_out_of_the_training_data():
    train, held = hold_out(pictures(20), pictures(4), 0.2)

    assert np.bincount(held[1]).tolist() == [2, 2]
    assert np.bincount(train[1]).tolist() == [8, 8]
    assert sorted([*train[0].ravel(), *held[0].ravel()]) == list(range(20))
    assert (train[0].ravel() % 2 == train[1]).all()  # pictures keep their labels


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_a_share_that_leaves_a_part_empty_is_refused(share):
    with pytest.raises(ValueError, match="would be held out"):
        hold_out(pictures(20), pictures(4), share)


@pytest.mark.parametrize("share", [-0.1, 1.0, "0.1"])
def test_other_shares_are_refused_before_anything_is_loaded(share):
    with pytest.raises(ValueError, match="validation-share must be"):
        get_task("cifar10").validate(config("cifar10", validation_share=share), 2)


def test_colour_bias_is_validated_on_half_grey_pictures():
    task, settings = get_task("data_bias"), config("data_bias", validation_share=0.1)
    images, labels = task.load_test(settings).tensors

    pixels = images * torch.tensor([63.0, 62.1, 66.7])[:, None, None]
    pixels = pixels + torch.tensor([125.3, 123.0, 113.9])[:, None, None]
    grey = ((pixels.amax(1) - pixels.amin(1)).amax((1, 2)) < 0.5).float()
    assert torch.bincount(labels).tolist() == [40] * 10
    assert [grey[labels == label].mean().item() for label in range(10)] == [0.5] * 10
    assert sum(len(task.load_partition(settings, i, 2)) for i in range(2)) == 3600


def test_shakespeare_is_validated_on_the_end_of_the_training_text():
    whole = load("embedded", "", **ROLES)
    data = load("embedded", "", **ROLES, validation_share=0.25)
    first = [text(d.train.tensors[0][d.owners == 0]) for d in (whole, data)]
    held = text(data.test.tensors[0][: _count(first[0], 0.25)])

    assert first[0].startswith(first[1])
    assert first[0].endswith(held)
    assert len(first[1]) + len(held) == len(first[0]) - 1  # the last character is only predicted


def text(rows):
    """The characters of consecutive windows of stride 1."""
    return bytes(torch.cat([rows[0], rows[1:, -1]]).tolist())


def _count(whole, share):
    """Windows in the held-out end of a text that is one character longer than `whole`."""
    length = len(whole) + 1
    return length - round(length * (1 - share)) - WINDOW


def test_shakespeare_refuses_a_share_without_a_window():
    with pytest.raises(ValueError, match="a window and the next character take 81"):
        load("embedded", "", **ROLES, validation_share=0.001)
