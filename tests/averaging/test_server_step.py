"""The last global model in new units: damped server steps, and rows of absent classes."""

import pytest
import torch

from fedma_flwr import load_model
from fedma_flwr.averaging import ClientUpdate, RoundStart
from fedma_flwr.averaging.head import keep_absent_rows
from fedma_flwr.averaging.server_step import step_towards, take_step
from fedma_flwr.matching import IdentityMatching
from fedma_flwr.structure import PermutationSpec
from fedma_flwr.testing import InProcessGrid
from tests.toy import CLIENTS, SPEC, LayerwiseFedMA, Net, fit, initial_arrays, make_app, reply

UNITS = [torch.tensor(units) for units in ([0, 1], [1, 2])]


def in_new_units(name, tensor, width):
    """Two clients had units 0, 1 and units 2, 3 of the last model's group b; it is `width` now."""
    start = RoundStart(
        tensors={name: tensor},
        selections=[{"b": torch.tensor([0, 1])}, {"b": torch.tensor([2, 3])}],
        assignments=[{}, {}],
        widths={},
    )
    matched = start.after_matching([{"b": units} for units in UNITS], {"b": width})
    return matched.in_new_units(SPEC, name)


def test_units_are_found_again_by_the_assignments():
    # b's bias of two clients with two units each; global unit 1 is held by both.
    values, known = in_new_units("b.bias", torch.tensor([1.0, 2.0, 4.0, 8.0]), 4)

    assert values.tolist() == [1.0, 3.0, 8.0, 0.0]
    assert known.tolist() == [True, True, True, False]


def test_pairs_of_units_are_known_where_a_client_holds_both():
    # c.weight, 2 outputs x b: the fixed axis belongs to everybody.
    last = torch.tensor([[1.0, 2.0, 6.0, 5.0], [3.0, 4.0, 8.0, 7.0]])
    values, known = in_new_units("c.weight", last, 3)

    assert values.tolist() == [[1.0, 4.0, 5.0], [3.0, 6.0, 7.0]]
    assert known.all()


def test_a_step_stops_short_of_the_mean_where_the_past_is_known():
    before = torch.tensor([0.0, 0.0], dtype=torch.float64), torch.tensor([True, False])

    damped = step_towards(torch.tensor([4.0, 4.0]), *before, 0.25)

    assert damped.tolist() == [1.0, 4.0]
    assert damped.dtype == torch.float32


@pytest.mark.parametrize(
    ("counts", "rows"),
    [([[3, 0], [2, 0]], [5.0, 1.0]), ([[3, 0], [2, 1]], [5.0, 5.0]), ([[3, 0], None], [5.0, 5.0])],
)
def test_rows_of_absent_classes_stay(counts, rows):
    updates = [
        ClientUpdate({}, 1.0, None if each is None else torch.tensor(each)) for each in counts
    ]
    before, known = torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.bool)

    kept = keep_absent_rows(
        SPEC, "c.bias", torch.full((2,), 5.0), updates, before=before, known=known
    )

    assert kept.tolist() == rows


STEPPED = PermutationSpec(
    groups={"h": 2},
    axes={"w": "h, 1", "n.running_mean": "h", "n": "", "out": "2, h"},
    statistics=["n.running_mean"],
    head=["out"],
)


def step(past, settled, *rate):
    """Of one client that holds all units and has examples of the first of two classes only."""
    same = {"h": torch.arange(2)}
    start = RoundStart(past, [same], [same], {"h": 2})
    updates = [ClientUpdate({}, 1.0, torch.tensor([4.0, 0.0]))]
    return take_step(STEPPED, settled, start, updates, *rate)


def filled(value):
    return {
        "w": torch.full((2, 1), value),
        "n.running_mean": torch.full((2,), value),
        "n": torch.tensor(int(value)),
        "out": torch.full((2, 2), value),
    }


@pytest.mark.parametrize("rate", [(), (1.0,), (0.5,)])
def test_only_weights_are_damped_and_only_the_head_keeps_rows(rate):
    """Integers and running statistics are the clients', whatever the rate."""
    settled = filled(8.0)
    found = step(filled(2.0), settled, *rate)
    moved = 5.0 if rate == (0.5,) else 8.0
    assert found["w"].tolist() == [[moved]] * 2
    assert found["out"].tolist() == [[moved] * 2, [2.0, 2.0]]  # nobody has the second class
    assert found["n.running_mean"].tolist() == [8.0, 8.0]
    assert found["n"].tolist() == 8
    assert settled["out"].tolist() == [[8.0, 8.0]] * 2  # what was given stays


def test_a_whole_step_is_the_mean_itself():
    """Nothing is lost on the way there and back, however large the past was."""
    found = step({**filled(0.0), "out": torch.full((2, 2), 1e30)}, filled(8.0))
    assert found["out"][0].tolist() == [8.0, 8.0]


def test_axes_that_are_not_matched_yet_keep_the_clients_own_units():
    start = RoundStart(
        tensors={"b.weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]])},
        selections=[{"a": torch.tensor([0, 1]), "b": torch.tensor([1])}],
        assignments=[{"b": torch.tensor([1])}],
        widths={"b": 2},
    )
    values, known = start.in_new_units(SPEC, "b.weight")
    assert values.tolist() == [[0.0, 0.0], [3.0, 4.0]]
    assert known.tolist() == [[False, False], [True, True]]


def test_groups_matched_later_join_those_matched_before():
    start = RoundStart({}, [{}], [{"a": UNITS[0]}], {"a": 2})
    later = start.after_matching([{"b": UNITS[1]}], {"b": 3})
    assert later.widths == {"a": 2, "b": 3}
    assert [units.tolist() for units in later.assignments[0].values()] == [[0, 1], [1, 2]]
    assert start.widths == {"a": 2}


def run(counts=None, rounds=2, **options):
    """The global models after each round; clients claim `counts` of the two classes."""
    seen = {}

    def train(message, context, client):

        model = load_model(Net(), message)
        fit(model, client)
        return reply(message, model, client, **({"class-counts": counts} if counts else {}))

    strategy = LayerwiseFedMA(
        spec=SPEC,
        min_available_nodes=CLIENTS,
        fraction_evaluate=0.0,
        matcher=IdentityMatching(),
        **options,
    )
    strategy.start(
        InProcessGrid(make_app(train), CLIENTS),
        initial_arrays(),
        num_rounds=rounds,
        evaluate_fn=lambda number, arrays: seen.update({number: arrays.to_torch_state_dict()}),
    )
    return seen


def test_a_head_keeps_its_row_for_a_class_that_no_client_has():
    models = run([60, 0])

    for name in ("c.weight", "c.bias"):
        assert torch.equal(models[2][name][1], models[0][name][1])
        assert not torch.equal(models[2][name][0], models[0][name][0])
    assert not torch.equal(models[1]["a.weight"], models[0]["a.weight"])


def test_a_small_server_learning_rate_keeps_the_model_near_to_the_last_one():
    full, damped = run(rounds=1), run(rounds=1, server_learning_rate=0.1)

    # The first layer settles first: its mean is that of the same local training.
    moved = full[1]["a.weight"] - full[0]["a.weight"]
    assert torch.allclose(damped[1]["a.weight"] - damped[0]["a.weight"], 0.1 * moved, atol=1e-6)
    assert not torch.equal(damped[1]["c.weight"], full[1]["c.weight"])


def test_clients_own_weights_have_no_past():
    damped = run(rounds=1, initialisation="own", server_learning_rate=0.1)
    full = run(rounds=1, initialisation="own")

    assert all(torch.equal(damped[1][name], full[1][name]) for name in full[1])


@pytest.mark.parametrize("rate", [0.0, 1.5, float("nan")])
def test_a_rate_out_of_range_is_refused(rate):
    with pytest.raises(ValueError, match=r"server_learning_rate was .*; it must be above 0"):
        LayerwiseFedMA(spec=SPEC, server_learning_rate=rate)
