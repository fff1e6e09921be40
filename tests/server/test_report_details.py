"""What only a report shows: small, and left out where it cannot be told."""

import torch

from fedma_flwr.averaging import ClientUpdate, HeadMoments, HeadSolver, StageOutcome
from fedma_flwr.averaging.head_moments import upper_triangle
from fedma_flwr.server.report_details import filters_of, scores_of
from fedma_flwr.structure import LinearHead, PermutationSpec

SPEC = PermutationSpec(
    groups={"g": 2}, axes={"c.weight": "g, 1, 2, 2", "h.weight": "2, g", "h.bias": "2"}
)
SOLVER = HeadSolver(LinearHead("h", "h.weight", "h.bias"))


def outcome(assignments, mean, **more):
    width = len(mean)
    return StageOutcome({"c.weight": mean}, assignments, {"g": width}, **more)


def updates(*tensors):
    return [ClientUpdate({"c.weight": tensor}, 1.0) for tensor in tensors]


def test_filters_are_those_of_the_units_that_two_clients_share():
    """Unit 0 of the one is unit 1 of the other; the last client shares nothing with them."""
    sent = [torch.full((2, 1, 2, 2), float(client)) for client in (1, 2, 4)]
    units = ({"g": torch.tensor([0, 1])}, {"g": torch.tensor([2, 0])}, {"g": torch.tensor([3, 4])})
    mean = torch.arange(5.0).reshape(5, 1, 1, 1).expand(5, 1, 2, 2) + 1
    found = filters_of(SPEC, updates(*sent), outcome(units, mean), ["x", "y\n", "z"])
    assert (found["tensor"], found["shape"], found["clients"]) == (
        "c.weight",
        [1, 2, 2],
        ["x", "y\\n"],
    )
    (unit,) = found["units"]
    assert (unit["global"], unit["local"]) == (0, [0, 1])
    # 1, 2 and 1 on a scale whose end is 127.
    assert [set(values) for values in unit["values"]] == [{64}, {127}, {64}]


def test_where_nothing_can_be_shown_there_is_nothing():
    alone = {"g": torch.tensor([0, 1])}
    mean = torch.ones(2, 1, 2, 2)
    assert filters_of(SPEC, updates(mean), outcome((alone,), mean), ["x"]) == {}
    others = {"g": torch.tensor([2, 3])}
    apart = outcome((alone, others), torch.ones(4, 1, 2, 2))
    assert filters_of(SPEC, updates(mean, mean), apart, ["x", "y"]) == {}
    nothing = StageOutcome({}, (alone, alone), {"g": 2})
    assert filters_of(SPEC, updates(mean, mean), nothing, ["x", "y"]) == {}


def with_moments(inputs, labels, examples=1.0):
    phi, y = torch.tensor(inputs), torch.nn.functional.one_hot(torch.tensor(labels), 2).double()
    cross = y.T @ torch.cat([phi.double(), torch.ones(len(phi), 1, dtype=torch.float64)], 1)
    moments = HeadMoments(upper_triangle(phi.double().T @ phi.double()), cross)
    return ClientUpdate({}, examples, moments=moments)


def test_scores_are_the_mean_of_those_of_single_examples():
    """Two clients; the second counts for its three examples."""
    sent = [with_moments([[1.0, 0.0], [3.0, 2.0]], [0, 0], 2.0)]
    sent += [with_moments([[2.0, 1.0], [0.0, 4.0], [0.0, 2.0]], [0, 1, 1], 3.0)]
    weight, bias = torch.tensor([[1.0, -1.0], [0.0, 2.0]]), torch.tensor([0.5, 0.0])
    solved = StageOutcome({"h.weight": weight, "h.bias": bias}, ({}, {}), head_solved=True)
    before = {"h.weight": torch.zeros(2, 2), "h.bias": torch.tensor([1.0, 3.0])}
    found = scores_of(SOLVER, sent, solved, before)
    # Class 0: inputs (2, 1) on average; class 1: (0, 3).
    assert found == {
        "before": [[1.0, 3.0], [1.0, 3.0]],
        "after": [[1.5, 2.0], [-2.5, 6.0]],
    }


def test_a_class_without_examples_and_a_head_of_another_width_are_left_out():
    sent = [with_moments([[1.0, 0.0]], [0])]
    head = {"h.weight": torch.ones(2, 2), "h.bias": torch.zeros(2)}
    solved = StageOutcome(head, ({},), head_solved=True)
    narrow = {"h.weight": torch.ones(2, 1), "h.bias": torch.zeros(2)}
    assert scores_of(SOLVER, sent, solved, narrow) == {"after": [[1.0, 1.0], None]}
    assert scores_of(None, sent, solved, narrow) == {}
    assert scores_of(SOLVER, [*sent, with_moments([[1.0]], [0])], solved, narrow) == {}
    assert scores_of(SOLVER, sent, StageOutcome(head, ({},)), narrow) == {}
