"""`fedma_mod` among other mods: in any order, and which of Flower's cannot stand beside it."""

import pytest
from flwr.client.mod import secagg_mod, secaggplus_mod
from flwr.clientapp.mod import (
    LocalDpMod,
    adaptiveclipping_mod,
    arrays_size_mod,
    fixedclipping_mod,
    message_size_mod,
)
from flwr.serverapp.exception import AggregationError

from fedma_flwr import FedAvg, FedMA, fedma_mod, load_model
from fedma_flwr.testing import InProcessGrid
from tests.toy import CLIENTS, SPEC, Net, fit, initial_arrays, make_app, reply

LOCAL_DP = LocalDpMod(1.0, 1.0, 1.0, 1e-5)
MODS = {
    "LocalDpMod": LOCAL_DP,
    "fixedclipping_mod": fixedclipping_mod,
    "adaptiveclipping_mod": adaptiveclipping_mod,
    "secagg": secagg_mod,
    "secaggplus_mod": secaggplus_mod,
}


def passing(message, context, call_next):
    return call_next(message, context)


def run(mods, strategy=None, rounds=2, train=None):
    strategy = strategy or FedMA(spec=SPEC, fraction_evaluate=0.0)
    grid = InProcessGrid(make_app(train, mods=mods), CLIENTS)
    return strategy.start(grid, initial_arrays(), num_rounds=rounds), strategy


def note(log, with_arrays=True):
    """A mod that reads what FedAvg's messages and replies always have, as other people's do."""

    def mod(message, context, call_next):
        config = message.content["config"]
        arrays = len(message.content["arrays"]) if with_arrays else 0
        answered = call_next(message, context)
        metrics, back = dict(answered.content["metrics"]), len(answered.content["arrays"])
        log.append((config["server-round"], config["server-exchange"], arrays, metrics, back))
        assert next(iter(message.content.config_records)) == "config"  # before FedMA's own
        return answered

    return mod


OWN = {"initialisation": "own"}


@pytest.mark.parametrize("options", [{}, OWN, {"one_shot": True}])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_mod_finds_fedavgs_records_wherever_it_stands(place, options):
    log, mods = [], [passing, fedma_mod]
    # Behind ours, a client that starts from weights of its own is sent none.
    mods.insert(place, note(log, with_arrays=place < 2 or options != OWN))
    strategy = FedMA(spec=SPEC, fraction_evaluate=0.0, **options)
    run(mods, strategy)
    stages = len(strategy.settings.plan)
    behind = place == 2
    hellos = [] if behind else [(1, 0)]
    steps = [(1 + number // stages, 1 + number) for number in range(2 * stages)]
    assert [entry[:2] for entry in log[::CLIENTS]] == hellos + steps
    if behind:
        assert {entry[4] for entry in log} == {6}


def test_a_train_functions_names_are_kept_for_mods_before_ours():
    names = []

    def mod(message, context, call_next):
        answered = call_next(message, context)
        names.append([name for name in answered.content if name != "fedma"])
        return answered

    def train(message, context, client):
        model = load_model(Net(), message)
        fit(model, client)
        answered = reply(message, model, client)
        answered.content["model"] = answered.content.pop("arrays")
        answered.content["numbers"] = answered.content.pop("metrics")
        return answered

    run((mod, fedma_mod), train=train, rounds=1)
    assert names[CLIENTS:] == [["model", "numbers"]] * 2 * CLIENTS


@pytest.mark.parametrize("mod", [arrays_size_mod, message_size_mod])
@pytest.mark.parametrize("first", [True, False])
def test_flowers_mods_that_only_look_go_with_it(mod, first):
    _, strategy = run((mod, fedma_mod) if first else (fedma_mod, mod))
    assert not any(record.dropped for record in strategy.history)


@pytest.mark.parametrize("name", MODS)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_mods_that_cannot_work_are_refused_in_the_hello_by_name(name, place):
    mods = [passing, fedma_mod]
    mods.insert(place, MODS[name])
    strategy = FedMA(spec=SPEC, fraction_evaluate=0.0)
    why = "server sees nothing but sums" if "secagg" in name else "moments"
    with pytest.raises(AggregationError, match=rf"(?s)Flower's {name}.* cannot be used.*{why}"):
        run(mods, strategy)
    assert [record.name for record in strategy.history] == ["hello"]


def test_one_client_with_such_a_mod_is_dropped_alone():
    def only_one(message, context, call_next):
        if context.node_config["partition-id"] == 2:
            return LOCAL_DP(message, context, call_next)
        return call_next(message, context)

    _, strategy = run((only_one, fedma_mod))
    reasons = [record.dropped for record in strategy.history if record.dropped]
    assert {key for each in reasons for key in each} == {"102"}
    assert all("LocalDpMod" in reason for each in reasons for reason in each.values())


def test_fedavg_goes_with_local_differential_privacy():
    def train(message, context, client):
        model = Net()
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        fit(model, client)
        return reply(message, model, client)

    result, strategy = run((fedma_mod, LOCAL_DP), FedAvg(fraction_evaluate=0.0), train=train)
    assert not any(record.dropped for record in strategy.history)
    assert strategy.client_key(101) == "1"
    assert result.arrays["a.bias"].data != initial_arrays()["a.bias"].data


def test_a_mod_that_fails_on_the_hello_is_told_where_to_stand():
    def fails(message, context, call_next):
        answered = call_next(message, context)
        answered.content["metrics"]["num-examples"]
        return answered

    with pytest.raises(AggregationError, match="must stand behind fedma_mod"):
        run((fails, fedma_mod))
    run((fedma_mod, fails))
