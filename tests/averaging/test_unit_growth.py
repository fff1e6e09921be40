"""Sizes do not ratchet: the bound does not follow what a hostile client has put into the model."""

import math

import pytest
import torch
from torch import nn

from fedma_flwr import load_model
from fedma_flwr.averaging import Averaging, ClientUpdate, Limits
from fedma_flwr.averaging.judging import judge
from fedma_flwr.averaging.unit_growth import bound_units
from fedma_flwr.structure import PermutationSpec
from fedma_flwr.testing import InProcessGrid
from tests.averaging.test_limits import NORMED
from tests.averaging.test_limits_in_runs import run
from tests.toy import SPEC, LayerwiseFedMA, Net, data, initial_arrays, make_app, reply

ROOT = math.sqrt(10.0)


def weight(*sizes, usual=0.2, rows=12):
    tensor = torch.full((rows, 2), usual)
    for row, size in enumerate(sizes):
        tensor[row] = size
    return ClientUpdate({"a.weight": tensor}, 1.0)


def bounded(*updates, model=None, ratio=10.0):
    model = model or {"a.weight": torch.full((12, 2), 0.2)}
    return list(bound_units(SPEC, dict(enumerate(updates)), model, ratio).values())


def sizes(update):
    return update.tensors["a.weight"][:, 0].tolist()


def test_larger_units_are_made_as_large_as_allowed_and_others_stay_as_they_are():
    honest = [weight(0.4) for _ in range(3)]
    *same, cut = bounded(*honest, weight(-1.9, 0.3))
    assert all(now is before for now, before in zip(same, honest, strict=True))
    assert sizes(cut)[:2] == pytest.approx([-0.2 * ROOT, 0.3], rel=1e-5)
    assert sizes(cut)[2:] == sizes(honest[0])[2:]


def test_what_the_median_client_has_is_no_growth():
    """All have a unit of 4; 1.5 times that is left, unless a second one is as large."""
    honest = [weight(4.0) for _ in range(3)]
    *_, cut = bounded(*honest, weight(0.2, 9.0))
    assert sizes(cut)[:2] == pytest.approx([0.2, 6.0], rel=1e-5)
    *_, cut = bounded(*honest, weight(0.2, 4.0, 3.0))
    assert sizes(cut)[:3] == pytest.approx([0.2, 4.0, 0.2 * ROOT], rel=1e-5)


def test_the_largest_unit_of_the_last_model_allows_nothing():
    model = {"a.weight": torch.full((12, 2), 0.2)}
    model["a.weight"][0] = 1000.0
    *_, cut = bounded(weight(), weight(), weight(500.0), model=model)
    assert sizes(cut)[0] == pytest.approx(0.2 * ROOT, rel=1e-5)


def test_units_that_the_model_has_grown_by_do_not_say_what_is_usual():
    """Half of all units came from a hostile client: 24 where there were 12."""
    large = [5.0] * 12
    model = {"a.weight": weight(*large, rows=24).tensors["a.weight"]}
    clients = [weight(*large, rows=24) for _ in range(3)]
    *_, cut = bounded(*clients, weight(*[15.0] * 24, rows=24), model=model)
    assert max(sizes(cut)) == pytest.approx(1.5 * 5.0, rel=0.01)
    assert min(sizes(cut)) == pytest.approx(0.2 * ROOT, rel=0.01)


def test_clients_of_other_widths_are_compared_by_the_share_of_their_units():
    narrow = weight(5.0, rows=6)
    *_, wide, cut = bounded(narrow, narrow, narrow, weight(5.0, 5.0), weight(5.0, 5.0, 5.0))
    assert sizes(wide)[:2] == [5.0, 5.0]
    assert sizes(cut)[:3] == pytest.approx([5.0, 5.0, 0.2 * ROOT], rel=1e-5)


def test_variances_statistics_numbers_and_nothing():
    model = {"n.running_var": torch.full((2,), 0.25), "n.count": torch.tensor(1)}

    def variance(value):
        tensors = {"n.running_var": torch.tensor([0.25, value]), "n.count": torch.tensor(5)}
        return ClientUpdate(tensors, 1.0)

    updates = dict(enumerate(map(variance, (0.25, 0.25, 0.25, 0.25, 24.9, 26.0))))
    found = bound_units(NORMED, updates, model, 10.0)
    assert [float(u.tensors["n.running_var"][1]) for u in found.values()] == pytest.approx(
        [0.25, 0.25, 0.25, 0.25, 24.9, 25.0], rel=1e-5
    )
    spec = PermutationSpec({"h": 2}, {"w": "h, 1", "scale": "", "none": "0, 2"})
    model = {"scale": torch.tensor(2.0), "none": torch.zeros(0, 2)}
    updates = {n: ClientUpdate({**model, "scale": torch.tensor(9.0 * n)}, 1.0) for n in range(3)}
    assert bound_units(spec, updates, model, 10.0) == updates
    assert bound_units(spec, {}, model, 10.0) == {}
    huge = {0: weight(), 1: weight(1e8)}
    assert bound_units(SPEC, huge, {"a.weight": torch.ones(12, 2)}, float("inf")) == huge


def test_judging_bounds_whoever_is_not_refused():
    model = {"a.weight": torch.full((12, 2), 0.2)}
    updates = {0: weight(), 1: weight(), 2: weight(1.9), 3: weight(2.1)}
    kept, refused = judge(SPEC, updates, model, Limits(10.0), Averaging())
    assert refused.keys() == {3}
    assert sizes(kept[2])[0] == pytest.approx(0.2 * ROOT, rel=1e-5)


def test_all_units_together_are_bounded_more_closely():
    """Twice the usual size each: within what a single unit may have, and too much for all."""
    *_, cut = bounded(weight(), weight(), weight(usual=0.4))
    assert sizes(cut) == pytest.approx([0.3] * 12, rel=1e-5)


@pytest.mark.parametrize("clients", [2, 3, 4, 10])
def test_clients_that_differ_evenly_stay_as_they_are(clients):
    """Client c has units of c + 1: nobody is out of all proportion."""
    updates = [weight(usual=0.2 * (client + 1)) for client in range(clients)]
    kept = bounded(*updates)
    assert all(now is before for now, before in zip(kept, updates, strict=True))


def largest(result):
    return max(float(abs(array.numpy()).max()) for array in result.arrays.values())


@pytest.mark.parametrize("factor", [3.0, 9.9])
def test_a_client_that_grows_all_it_is_sent_does_not_drive_the_model_up(factor):
    """One of six, eight rounds: without the bound sizes would multiply in every one of them."""
    strategy, attacked = run(lambda v, _: v * factor, clients=6, honest=5, rounds=8)
    _, alone = run(None, clients=5, honest=5, rounds=8)
    assert largest(attacked) < 4.0 * largest(alone)
    honest = {str(client) for client in range(5)}
    assert not any(honest & record.dropped.keys() for record in strategy.history)


@pytest.mark.parametrize("clients", [2, 3, 7])
@pytest.mark.parametrize("wild", [True, False])
def test_honest_clients_are_never_refused(clients, wild):
    """At a learning rate of 0.1, with momentum, after a first round at 2."""

    def train(message, context, client):
        model = load_model(Net(), message)
        first = message.content["config"]["server-round"] == 1
        x, y = data(client)
        ready = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(ready, lr=2.0 if wild and first else 0.1, momentum=0.9)
        for _ in range(4 if wild and first else 30):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        return reply(message, model, client)

    strategy = LayerwiseFedMA(spec=SPEC, fraction_evaluate=0.0)
    strategy.start(InProcessGrid(make_app(train), clients), initial_arrays(), num_rounds=4)
    assert not any(record.dropped for record in strategy.history)
