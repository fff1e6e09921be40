"""`class_counts`: whatever numbers classes is counted, what does not is refused in words."""

import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot

from fedma_flwr import class_counts


@pytest.mark.parametrize(
    "labels", [[0, 2, 2], torch.tensor([[0], [2], [2]]), torch.tensor([0, 2, 2.0])]
)
def test_examples_are_counted_class_by_class(labels):
    counts = class_counts(labels, 4)
    assert counts == [1, 0, 2, 0]
    assert all(type(count) is int for count in counts)


def test_counts_without_examples_and_at_both_ends():
    assert class_counts([], 3) == [0, 0, 0]
    assert class_counts([0], 1) == [1]
    assert class_counts([2], 3) == [0, 0, 1]


@pytest.mark.parametrize(
    ("labels", "said"), [([0, 3], "from 0 to 3.*num_classes is 3.*0..2"), ([-1, 1], "from -1 to 1")]
)
def test_a_label_outside_is_refused(labels, said):
    with pytest.raises(ValueError, match=said):
        class_counts(labels, 3)


@pytest.mark.parametrize(
    "labels",
    [
        (0, 2, 2),
        np.array([0, 2, 2], dtype=np.uint8),
        np.array([0.0, 2.0, 2.0], dtype=np.float16),
        np.array([0, 2, 2], dtype=object),
        [torch.tensor(0), torch.tensor(2), torch.tensor(2)],
        [np.int64(0), 2, 2.0],
        torch.tensor([0, 2, 2], dtype=torch.bfloat16),
        torch.tensor([0.0, 2.0, 2.0], requires_grad=True),
    ],
)
def test_labels_may_be_of_any_kind_of_number(labels):
    assert class_counts(labels, 3) == [1, 0, 2]


def test_a_series_is_counted_whatever_its_index():
    pandas = pytest.importorskip("pandas")
    assert class_counts(pandas.Series([0, 1, 1], index=[5, 6, 7]), 2) == [1, 2]
    assert class_counts(pandas.Series([0, 1, 1], dtype="Int64", index=[2, 1, 0]), 2) == [1, 2]
    with pytest.raises(ValueError, match=r"cat\.codes"):
        class_counts(pandas.Series(["a", "b"], dtype="category"), 2)


def test_truth_values_are_two_classes():
    assert class_counts([False, True, True], 2) == [1, 2]
    with pytest.raises(ValueError, match="True and False for 3 classes"):
        class_counts(torch.tensor([False, True]), 3)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (one_hot(torch.tensor([0, 1, 2, 2]), 3), r"shape \(4, 3\).*argmax\(1\)"),
        (one_hot(torch.tensor([0, 1, 2, 2]), 3).float(), r"shape \(4, 3\).*argmax\(1\)"),
        (np.eye(3, dtype=bool), r"shape \(3, 3\).*argmax\(1\)"),
        (torch.zeros(2, 4, 4, dtype=torch.int64), r"shape \(2, 4, 4\).*flatten"),
        ([[0, 1], [2]], "argmax"),
        (torch.tensor(1), r"shape \(\)"),
        (torch.tensor([0.2, 0.9, 1.7]), "soft labels"),
        ([0.0, float("nan")], "soft labels"),
        ([0.0, float("inf")], "soft labels"),
        (["cat", "dog"], "cat.*number the classes first"),
        (["0", "1"], "number the classes first"),
        ([0, "dog"], "number the classes first"),
        ([0, None], "number the classes first"),
        ([1j, 0], "number the classes first"),
        ({0, 1}, "set; give a list"),
        ((label for label in [0, 1]), "generator; give a list"),
        ([2**63], "class_counts wants|must lie"),
    ],
)
def test_what_numbers_no_classes_is_refused_with_a_remedy(labels, said):
    with pytest.raises(ValueError, match=f"(?s){said}"):
        class_counts(labels, 3)


@pytest.mark.parametrize("classes", [0, -1, 2.0, True, None, "3"])
def test_the_number_of_classes_is_one(classes):
    with pytest.raises(ValueError, match="num_classes was"):
        class_counts([0, 1], classes)
