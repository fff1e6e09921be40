"""One-shot matching: a round is one exchange, and nothing is retrained."""

import pytest
import torch

from fedma_flwr import load_model
from fedma_flwr.averaging import ClientUpdate, settle_stage
from fedma_flwr.matching import BBPMAP, IdentityMatching
from fedma_flwr.protocol import to_tensors
from fedma_flwr.structure import PermutationSpec, StagePlan
from fedma_flwr.testing import InProcessGrid
from tests.toy import CLIENTS, SPEC, LayerwiseFedMA, Net, data, fit, initial_arrays, make_app, reply


def permuted(client):
    """One network, its units in another order for each client."""
    generator = torch.Generator().manual_seed(client)
    permutations = {
        name: torch.randperm(group.size, generator=generator) for name, group in SPEC.groups.items()
    }
    return SPEC.permute(to_tensors(initial_arrays()), permutations)


def run(strategy, train=None, rounds=1):
    grid = InProcessGrid(make_app(train), CLIENTS)
    result = strategy.start(grid, initial_arrays(), num_rounds=rounds)
    assert not any(record.dropped for record in strategy.history)
    return result


def stage_records(strategy):
    return [record for record in strategy.history if record.name != "hello"]


@pytest.mark.parametrize("initialisation", ["common", "own"])
def test_a_round_is_one_exchange_and_the_next_goes_on_from_it(initialisation):
    def train(message, context, client):
        model = load_model(Net(), message)
        assert all(parameter.requires_grad for parameter in model.parameters())
        fit(model, client, steps=20)
        return reply(message, model, client)

    strategy = LayerwiseFedMA(spec=SPEC, one_shot=True, initialisation=initialisation)
    result = run(strategy, train, rounds=4)
    records = stage_records(strategy)
    assert [(r.round, r.stage, r.stages, r.name) for r in records] == [
        (number, 0, 1, "local") for number in (1, 2, 3, 4)
    ]
    assert all(record.groups == ("a", "b") for record in records)
    model = load_model(Net(), result.arrays)
    right = [(model(x).argmax(1) == y).float().mean() for x, y in map(data, range(CLIENTS))]
    assert torch.stack(right).mean() > 0.9


def test_permuted_copies_of_one_network_are_put_together_and_handed_back():
    """Each client gets its own units in its own order, though it never heard where they went."""
    received = []

    def train(message, context, client):
        model = load_model(Net(), message)
        if not message.content.array_records:
            model.load_state_dict(permuted(client))
        else:
            received.append((client, model.state_dict()))
        return reply(message, model, client)

    strategy = LayerwiseFedMA(spec=SPEC, one_shot=True, initialisation="own", matcher=BBPMAP())
    result = run(strategy, train, rounds=2)
    assert stage_records(strategy)[0].identity < 1.0
    x = torch.randn(20, 2)
    expected = load_model(Net(), to_tensors(initial_arrays()))(x)
    torch.testing.assert_close(load_model(Net(), result.arrays)(x), expected)
    assert [client for client, _ in received] == list(range(CLIENTS))
    for client, state in received:
        torch.testing.assert_close(dict(state), permuted(client))


def test_the_head_counts_a_lacking_unit_as_zero():
    """Client 0 has units 0 and 1, client 1 unit 0 alone; class weights are 3/4 and 1/4."""
    spec = PermutationSpec(groups={"h": 2}, axes={"in": "h, 1", "out": "2, h"})
    updates = [
        ClientUpdate(
            {"in": torch.tensor([[1.0], [5.0]]), "out": torch.tensor([[4.0, 8.0], [4.0, 8.0]])},
            1.0,
            torch.tensor([3.0, 1.0]),
        ),
        ClientUpdate(
            {"in": torch.tensor([[3.0]]), "out": torch.tensor([[12.0], [12.0]])},
            1.0,
            torch.tensor([1.0, 3.0]),
        ),
    ]
    outcome = settle_stage(
        spec,
        StagePlan.one_shot(spec)[0],
        updates,
        matched=frozenset(),
        matcher=IdentityMatching(),
        max_widths={"h": 2},
    )
    assert outcome.head_by_class
    assert outcome.tensors["in"].tolist() == [[2.0], [5.0]]
    assert outcome.tensors["out"].tolist() == [[3.0 + 3.0, 6.0], [1.0 + 9.0, 2.0]]


@pytest.mark.parametrize(
    "option",
    [{"groups_per_stage": 2}, {"retrain_config": {"lr": 1}}, {"head_config": {"lr": 1}}],
)
def test_options_about_later_stages_are_refused(option):
    with pytest.raises(ValueError, match=rf"one_shot.*{next(iter(option))}"):
        LayerwiseFedMA(spec=SPEC, one_shot=True, **option)
