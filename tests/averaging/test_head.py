"""The paper's head: rows averaged by class counts, whoever and however few take part."""

import pytest
import torch

from fedma_flwr.averaging import Averaging, ClientUpdate, head, settle_stage
from fedma_flwr.matching import BBPMAP
from fedma_flwr.structure import PermutationSpec, StagePlan

SPEC = PermutationSpec(
    groups={"h": 2}, axes={"a.weight": "h, 1", "b.weight": "2, h", "b.bias": "2"}
)
WEIGHT = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
BIAS = torch.tensor([0.25, -4.0])


def update(factor=1.0, counts=None, examples=5.0):
    counts = None if counts is None else torch.tensor(counts)
    tensors = {"b.weight": WEIGHT * factor, "b.bias": BIAS * factor}
    return ClientUpdate(tensors, examples, counts)


def settle(*updates, kind="mean", spec=SPEC):
    return settle_stage(
        spec,
        StagePlan.build(spec)[1],
        updates,
        matched=frozenset({"h"}),
        matcher=BBPMAP(),
        max_widths={"h": 10},
        averaging=Averaging(kind),
    )


@pytest.mark.parametrize("kind", ["mean", "median", "trimmed_mean"])
@pytest.mark.parametrize("counts", [None, [3.0, 2.0], [5.0, 0.0], [0.0, 0.0], [1.0]])
def test_a_head_of_one_client_is_that_clients(kind, counts):
    outcome = settle(update(counts=counts), kind=kind)
    assert torch.equal(outcome.tensors["b.weight"], WEIGHT)
    assert torch.equal(outcome.tensors["b.bias"], BIAS)
    assert outcome.head_by_class == (counts is not None and len(counts) == 2)
    assert outcome.identity_share is None
    assert outcome.assignments == ({},)


def test_rows_go_by_class_counts_along_the_output_axis_whatever_its_place():
    """b.weight is (outputs, h), the other head's tensor (h, outputs), as a transposed layer has."""
    spec = PermutationSpec(
        groups={"h": 2}, axes={"a.weight": "h, 1", "t.weight": "h, 2"}, head=["t.weight"]
    )
    counts = ([3.0, 0.0], [1.0, 4.0])
    updates = [
        ClientUpdate({"t.weight": torch.full((2, 2), value)}, 1.0, torch.tensor(count))
        for value, count in zip((1.0, 5.0), counts, strict=True)
    ]
    dim = spec.output_axis("t.weight")
    found = settle(*updates, spec=spec).tensors["t.weight"]
    rows = found.movedim(dim, 0)
    assert rows.tolist() == [[2.0, 2.0], [5.0, 5.0]]


def test_a_single_number_has_no_rows():
    spec = PermutationSpec(
        groups={"h": 2}, axes={"a.weight": "h, 1", "b.weight": "2, h", "scale": ""},
        head=["b.weight", "scale"],
    )  # fmt: skip
    updates = [
        ClientUpdate({"b.weight": WEIGHT, "scale": torch.tensor(v)}, e, torch.tensor([1.0, 1.0]))
        for v, e in ((1.0, 1.0), (5.0, 3.0))
    ]
    outcome = settle(*updates, spec=spec)
    assert outcome.tensors["scale"].item() == 4.0
    assert outcome.head_by_class  # the rest was


def test_counts_must_be_of_every_client_and_of_the_heads_length():
    with_counts, without = update(counts=[1.0, 2.0]), update()
    assert head.fitting_counts([with_counts, without], 2) is None
    assert head.fitting_counts([without, without], 2) is None
    assert head.fitting_counts([with_counts, update(counts=[1.0])], 2) is None
    assert head.fitting_counts([with_counts, with_counts], 3) is None
    found = head.fitting_counts([with_counts, update(counts=[3, 4])], 2)
    assert found.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert found.dtype == torch.float64


def test_a_robust_head_is_capped_and_a_mean_is_not():
    """Class 0: counts 1, 3 and 1000; class 1 nobody has, so that all clients are alike there."""
    updates = [update(f, counts=[c, 0.0]) for f, c in ((1.0, 1.0), (1.0, 3.0), (2.0, 1000.0))]
    plain = head.class_weights(SPEC, "b.weight", updates, capped=False)
    capped = head.class_weights(SPEC, "b.weight", updates, capped=True)
    assert plain.shape == capped.shape == (3, 2, 1)
    assert plain[:, 0, 0].tolist() == [1.0, 3.0, 1000.0]
    assert capped[:, 0, 0].tolist() == [1.0, 3.0, 3.0]
    assert plain[:, 1, 0].tolist() == capped[:, 1, 0].tolist() == [1.0, 1.0, 1.0]
    assert settle(*updates, kind="median").tensors["b.bias"][0] == BIAS[0]


@pytest.mark.parametrize(
    ("counts", "capped"),
    [
        ([5.0, 0.0, 7.0, 9.0], [5.0, 0.0, 7.0, 7.0]),  # median of 5, 7, 9
        ([5.0, 0.0, 7.0], [5.0, 0.0, 5.0]),  # the lower of two
        ([0.0, 8.0], [0.0, 8.0]),
        ([0.0, 0.0], [0.0, 0.0]),
        ([4.0], [4.0]),
    ],
)
def test_the_cap_is_the_lower_median_of_who_has_the_class(counts, capped):
    assert head.cap_counts(torch.tensor(counts)).tolist() == capped


def test_rows_that_the_server_does_not_know_are_the_clients():
    mean, before = torch.full((2,), 5.0), torch.tensor([1.5, 2.5], dtype=torch.float64)
    updates = [update(counts=[0.0, 0.0])]
    kept = head.keep_absent_rows(
        SPEC, "b.bias", mean, updates, before=before, known=torch.tensor([True, False])
    )
    assert kept.tolist() == [1.5, 5.0]
    assert kept.dtype == torch.float32
