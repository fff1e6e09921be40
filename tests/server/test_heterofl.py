"""FedAvg with narrow clients is HeteroFL: first units, each entry averaged over its holders."""

import pytest
import torch
from flwr.app import ArrayRecord

from fedma_flwr import FedAvg, FedMA, FedProx, load_model
from fedma_flwr.matching import IdentityMatching
from fedma_flwr.testing import InProcessGrid
from tests.toy import SPEC, Net, data, initial_arrays, make_app, reply

WIDTHS = {"2": 0.5, "3": 0.25}


def moved(by):
    """A train function whose clients add a number of their own to all that they were sent."""

    def train(message, context, client):
        model = load_model(Net(), message)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += by[client]
        return reply(message, model, client)

    return train


@pytest.mark.parametrize("strategy", [FedAvg, FedProx])
def test_an_entry_is_the_mean_of_its_holders_and_keeps_its_value_without_any(strategy):
    app = make_app(moved([1.0, 2.0, 4.0, 8.0]))
    widths = {"0": 0.75, "1": 0.75, **WIDTHS}
    fedavg = strategy(spec=SPEC, client_widths=widths, fraction_evaluate=0.0)

    result = fedavg.start(InProcessGrid(app, 4), initial_arrays(), num_rounds=1)

    change = result.arrays.to_torch_state_dict()["a.bias"]
    change = change - initial_arrays().to_torch_state_dict()["a.bias"]
    # Units 0 to 2 are held by all, 3 to 5 by three, 6 to 8 by two, and 9 to 11 by nobody.
    expected = torch.tensor([3.75] * 3 + [7 / 3] * 3 + [1.5] * 3 + [0.0] * 3)
    torch.testing.assert_close(change, expected)


def test_it_is_fedma_without_matching_and_with_a_trained_head():
    """But for the head's rows, which FedMA averages by class counts: here clients have none."""
    options = {"client_widths": WIDTHS, "spec": SPEC, "fraction_evaluate": 0.0}
    ours = FedMA(
        matcher=IdentityMatching(),
        one_shot=True,
        weighted_units=True,
        width_selection="first",
        **options,
    )

    def train(message, context, client):
        model = load_model(Net(), message)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter *= 1 + 0.1 * client
        return reply(message, model, client, **{"class-counts": None})

    results = [
        strategy.start(InProcessGrid(make_app(train), 4), initial_arrays(), num_rounds=3)
        for strategy in (ours, FedAvg(**options))
    ]

    left, right = (result.arrays.to_torch_state_dict() for result in results)
    for name, tensor in left.items():
        torch.testing.assert_close(tensor, right[name])


def test_widths_need_a_spec():
    with pytest.raises(ValueError, match=r"client_widths was .*give `model` and `example_inputs`"):
        FedAvg(client_widths=WIDTHS)


def test_whoever_says_that_it_is_narrow_is_left_out_without_a_spec(caplog):
    grid = InProcessGrid(make_app(), 3)
    grid.contexts[101].node_config["client-width"] = 0.5
    strategy = FedAvg(fraction_evaluate=1.0)

    strategy.start(grid, initial_arrays(), num_rounds=2)

    assert [r.cohort for r in strategy.history if r.name != "hello"] == [2, 2]
    assert "Give it `model` and `example_inputs`" in caplog.text


def test_narrow_clients_evaluate_their_own_model():
    seen = []

    def note(message, context):
        record = message.content.array_records.get("arrays", ArrayRecord())
        if context.node_config["partition-id"] == 3 and record:
            seen.append(tuple(record["b.weight"].shape))

    strategy = FedAvg(spec=SPEC, client_widths=WIDTHS)
    strategy.start(InProcessGrid(make_app(), 4, intercept=note), initial_arrays(), num_rounds=1)

    assert seen == [(2, 3)] * 2
    model = load_model(Net(), strategy.arrays_at(0.25))
    assert model(data(0)[0]).shape == (60, 2)
