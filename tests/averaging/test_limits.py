"""No client is larger or heavier than its cohort allows."""

import pytest
import torch

from fedma_flwr.averaging import ClientUpdate, bound_weights, oversized
from fedma_flwr.structure import PermutationSpec
from tests.toy import SPEC, LayerwiseFedMA

BIAS = {"a.bias": torch.full((12,), 0.5)}


def bias(*values, size=12):
    tensor = torch.full((size,), 0.5)
    tensor[: len(values)] = torch.tensor(values)
    return ClientUpdate({"a.bias": tensor}, 1.0)


def refused(*updates, model=BIAS, ratio=10.0):
    return oversized(SPEC, dict(enumerate(updates)), model, ratio).keys()


def test_a_single_unit_too_large_is_found():
    # Usual is 0.5, so that 5 is the limit; the sign does not matter.
    assert refused(bias(), bias(), bias(-5.0)) == set()
    assert refused(bias(), bias(), bias(-5.01)) == {2}
    assert refused(bias(), bias(), bias(5.01), ratio=11.0) == set()


def test_with_two_clients_the_smaller_and_the_global_model_say_what_is_usual():
    assert refused(bias(), bias(50.0)) == {1}
    nothing = ClientUpdate({"a.bias": torch.zeros(12)}, 1.0)
    assert refused(bias(), nothing) == set()
    # A hostile majority of nothing does not drop who keeps to the global model's scale.
    assert refused(bias(), nothing, nothing) == set()


def test_what_is_small_passes_beside_zeros():
    zeros = {"a.bias": torch.zeros(12)}
    others = ClientUpdate(zeros, 1.0)
    assert refused(others, others, bias(1.0), model=zeros) == set()
    assert refused(others, others, bias(1.01), model=zeros) == {2}


def test_a_row_counts_as_one_unit():
    """Size is the root mean square along a unit: rows (3, 4) have sqrt(12.5) whatever the order."""
    model = {"a.weight": torch.full((12, 2), 1.0)}
    weight = torch.ones(12, 2)
    weight[7] = torch.tensor([30.0, 40.0])
    updates = [ClientUpdate({"a.weight": torch.ones(12, 2)}, 1.0) for _ in range(2)]
    updates.append(ClientUpdate({"a.weight": weight}, 1.0))
    assert refused(*updates, model=model, ratio=35.3) == {2}  # 50 / sqrt(2) = 35.36
    assert refused(*updates, model=model, ratio=35.4) == set()


NORMED = PermutationSpec(
    {"h": 2},
    {"w": "h, 1", "n.running_mean": "h", "n.running_var": "h", "n.count": ""},
    statistics=["n.running_mean", "n.running_var", "n.count"],
)


@pytest.mark.parametrize(
    ("usual", "limit"),
    [
        (0.25, 25.0),  # standard deviations of 0.5 and of 5
        (0.04, 4.0),
        (4.0, 400.0),
        (1e-9, 1.0),  # 0.1 is no unusual size, so that 1 is the limit
    ],
)
def test_the_size_of_a_running_variance_is_the_standard_deviation(usual, limit):
    model = {"n.running_var": torch.full((2,), usual)}

    def variance(value):
        return ClientUpdate({"n.running_var": torch.tensor([usual, value])}, 1.0)

    found = oversized(
        NORMED,
        dict(enumerate(map(variance, (usual, usual, 0.99 * limit, 1.01 * limit)))),
        model,
        10.0,
    )
    assert found.keys() == {3}
    assert "a unit of 'n.running_var' has size" in found[3]


def test_a_running_mean_is_compared_as_it_is():
    model = {"n.running_mean": torch.full((2,), 0.25)}

    def mean(value):
        return ClientUpdate({"n.running_mean": torch.tensor([0.0, value])}, 1.0)

    updates = dict(enumerate(map(mean, (0.25, 0.25, -2.49, -2.51))))
    assert oversized(NORMED, updates, model, 10.0).keys() == {3}


def test_integers_have_no_usual_size_and_the_first_reason_is_said():
    model = {"n.count": torch.tensor(1), "w": torch.ones(2, 1), "n.running_mean": torch.ones(2)}
    small = {name: tensor.clone() for name, tensor in model.items()}
    large = {
        "n.count": torch.tensor(10**6),
        "w": 11 * small["w"],
        "n.running_mean": 99 * small["w"],
    }
    updates = {5: ClientUpdate(small, 1.0), 6: ClientUpdate(large, 1.0)}
    found = oversized(NORMED, updates, model, 10.0)
    assert found.keys() == {6}
    assert found[6].startswith("a unit of 'w' has size 11 (root mean square); usual is 1,")
    assert oversized(NORMED, {}, model, 10.0) == {}


def test_one_number_and_none_have_a_size_too():
    spec = PermutationSpec({"h": 2}, {"w": "h, 1", "scale": "", "none": "0, 2"})
    model = {"scale": torch.tensor(2.0), "none": torch.zeros(0, 2)}

    def scale(value):
        return ClientUpdate({**model, "scale": torch.tensor(value)}, 1.0)

    updates = dict(enumerate(map(scale, (2.0, 2.0, -20.0, -20.1))))
    assert oversized(spec, updates, model, 10.0).keys() == {3}


def test_weights_are_bounded_by_the_cohorts_median():
    counts = ([10.0, 0.0], [5.0, 5.0], [0.0, 10.0], [3e15, 1e15])
    updates = {
        number: ClientUpdate({}, examples, torch.tensor(count))
        for number, (examples, count) in enumerate(
            zip((8.0, 10.0, 12.0, 4e15), counts, strict=True)
        )
    }
    bounded = bound_weights(updates, 3.0)
    assert [update.examples for update in bounded.values()] == [8.0, 10.0, 12.0, 30.0]
    assert bounded[3].class_counts.tolist() == [22.5, 7.5]  # 30 in all, in the same proportion
    assert all(bounded[n].class_counts is updates[n].class_counts for n in range(3))


def test_who_sends_no_fitting_counts_does_not_undo_the_others():
    """With 30 examples and no counts, or of a wrong length: 15 of either class."""
    counts = (torch.tensor([6.0, 4.0]), torch.tensor([3.0, 7.0]), torch.tensor([0.0, 9.0]))
    good = [ClientUpdate({}, 10.0, count) for count in counts]
    bad = [ClientUpdate({}, 30.0), ClientUpdate({}, 30.0, torch.ones(7))]
    bounded = bound_weights(dict(enumerate([*good, *bad])), 10.0)
    expected = [[6.0, 4.0], [3.0, 7.0], [0.0, 9.0], [15.0, 15.0], [15.0, 15.0]]
    assert [update.class_counts.tolist() for update in bounded.values()] == expected


def test_class_counts_of_some_clients_only():
    updates = {0: ClientUpdate({}, 1.0), 1: ClientUpdate({}, 1.0, torch.zeros(2))}
    bounded = bound_weights(updates, 1.0)
    assert bounded[0].class_counts is None
    assert bounded[1].class_counts.tolist() == [0.0, 0.0]


def test_at_the_bound_nothing_is_changed():
    """Three times the median, 10, and counts of 30 in all."""
    counts = torch.tensor([20.0, 10.0])
    updates = {n: ClientUpdate({}, 10.0, torch.tensor([5.0, 5.0])) for n in range(3)}
    updates[3] = ClientUpdate({}, 30.0, counts)
    bounded = bound_weights(updates, 3.0)
    assert bounded[3].examples == 30.0
    assert bounded[3].class_counts is counts
    assert bound_weights({}, 3.0) == {}


def test_where_most_send_no_counts_who_does_keeps_them():
    updates = {n: ClientUpdate({}, 6.0) for n in range(3)}
    updates[3] = ClientUpdate({}, 6.0, torch.tensor([1.0, 5.0]))
    bounded = bound_weights(updates, 10.0)
    assert bounded[3].class_counts.tolist() == [1.0, 5.0]
    assert all(bounded[n].class_counts is None for n in range(3))


def test_counts_may_be_fractions():
    updates = {n: ClientUpdate({}, 1.0, torch.tensor([0.25, 0.25])) for n in range(2)}
    updates[2] = ClientUpdate({}, 1.0, torch.tensor([3.0, 1.0]))
    assert bound_weights(updates, 1.0)[2].class_counts.tolist() == [0.375, 0.125]


def test_the_lower_of_two_clients_in_the_middle_says_what_is_usual():
    updates = {n: ClientUpdate({}, float(n)) for n in (1, 2, 8, 9)}
    assert [u.examples for u in bound_weights(updates, 1.5).values()] == [1.0, 2.0, 3.0, 3.0]


@pytest.mark.parametrize("majority", [2, 3])
def test_half_of_a_cohort_is_no_majority(majority):
    """Of four clients, two or three have counts of two classes; the others have none."""
    updates = {
        n: ClientUpdate({}, 6.0, torch.tensor([1.0, 5.0]) if n < majority else None)
        for n in range(4)
    }
    last = bound_weights(updates, 10.0)[3].class_counts
    assert last is None if majority == 2 else last.tolist() == [3.0, 3.0]


@pytest.mark.parametrize("name", ["max_norm_ratio", "max_weight_ratio"])
@pytest.mark.parametrize("value", [0.5, float("nan")])
def test_ratios_below_one_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} was"):
        LayerwiseFedMA(spec=SPEC, **{name: value})
