"""FedMA on an in-process grid: the stages, what crosses the wire, and when nothing goes wrong."""

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord

from fedma_flwr import FedAvg, Stage, load_model
from fedma_flwr.matching import BBPMAP, IdentityMatching
from fedma_flwr.structure import sequential_spec
from fedma_flwr.testing import InProcessGrid
from tests.server.toy_runs import run, stage_records
from tests.toy import CLIENTS, SPEC, LayerwiseFedMA, Net, fit, initial_arrays, make_app, reply

FULL, UPDATE = "full", "update"


def spy(log):
    """An interceptor that notes the instruction and the array bytes of every message."""

    def intercept(message, context):
        is_stage = "fedma" in message.content and message.content["fedma"]["kind"] != "hello"
        if is_stage:
            arrays = message.content.array_records.get("arrays", {})
            log.append((dict(message.content["fedma"]), {n: a.shape for n, a in arrays.items()}))

    return intercept


@pytest.mark.parametrize(("per_stage", "names"), [
    (1, ["local", "retrain", "head"]), (2, ["local", "head"]), ("all", ["local", "head"])
])  # fmt: skip
def test_a_round_is_its_stages(per_stage, names):
    strategy = LayerwiseFedMA(spec=SPEC, groups_per_stage=per_stage)
    result = run(strategy, rounds=2)
    assert [record.name for record in stage_records(strategy)] == names * 2
    assert set(result.arrays) == set(Net().state_dict())
    assert list(result.train_metrics_clientapp) == [1, 2]


def test_training_improves_the_model():
    strategy = LayerwiseFedMA(spec=SPEC)
    result = run(strategy, make_app(steps=20), rounds=3)
    accuracies = [m["accuracy"] for m in result.evaluate_metrics_clientapp.values()]
    assert accuracies[-1] > 0.9


def test_each_weight_crosses_once_each_way():
    log = []
    strategy = LayerwiseFedMA(spec=SPEC, max_growth=1.0)
    run(strategy, rounds=2, intercept=spy(log))
    names = set(Net().state_dict())
    second = [(i, shapes) for i, shapes in log if i["round"] == 2]
    sent = [name for _, shapes in second for name in shapes]
    assert sorted(sent) == sorted(list(names) * CLIENTS)
    wanted = [name for i, _ in second for name in i["uploads"]]
    assert sorted(wanted) == sorted(list(names) * CLIENTS)
    assert {i["kind"] for i, _ in second} == {UPDATE}


def test_bytes_of_a_round_are_those_of_fedavg():
    """At most 1.1 x growth x FedAvg's; the toy's tensors are tiny, so count a larger network."""

    class Wide(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Linear(2, 300), torch.nn.Linear(300, 300)
            self.c = torch.nn.Linear(300, 2)

    def train(message, context, client):
        model = load_model(Wide(), message)
        trainable = [p for p in model.parameters() if p.requires_grad]
        for parameter in trainable:
            parameter.data += 0.1 * torch.randn_like(parameter)
        return reply(message, model, client)

    arrays = ArrayRecord(Wide().state_dict())
    fedavg, fedma = FedAvg(), LayerwiseFedMA(spec=sequential_spec(Wide()))
    for strategy in (fedavg, fedma):
        strategy.fraction_evaluate = 0.0
        strategy.start(InProcessGrid(make_app(train), CLIENTS), arrays, num_rounds=2)

    def bytes_of(strategy, way):
        return sum(getattr(r, way) for r in stage_records(strategy) if r.round == 2)

    growth = stage_records(fedma)[-1].growth
    for way in ("bytes_up", "bytes_down"):
        assert bytes_of(fedma, way) <= 1.1 * growth * bytes_of(fedavg, way)


def test_common_start_and_tiny_gamma_give_the_plain_means():
    """Then every assignment is the identity, and each stage's tensors are the clients' means."""
    seen = []

    def train(message, context, client):
        model = load_model(Net(), message)
        fit(model, client)
        seen.append((Stage.from_message(message), model.state_dict()))
        return reply(message, model, client)

    strategy = LayerwiseFedMA(spec=SPEC, matcher=BBPMAP.reference(gamma=1e-9, output="mean"))
    result = run(strategy, make_app(train))
    for index, name in enumerate(["a.weight", "b.weight"]):
        uploads = [state[name] for stage, state in seen if stage.index == index]
        assert len(uploads) == CLIENTS
        mean = torch.stack(uploads).double().mean(0).float()
        torch.testing.assert_close(torch.from_numpy(result.arrays[name].numpy()), mean)
    assert all(record.identity == 1.0 for record in stage_records(strategy)[:2])


def test_identity_rounds_are_named_in_the_log(caplog):
    caplog.set_level("INFO", logger="flwr")
    run(LayerwiseFedMA(spec=SPEC, matcher=IdentityMatching()))
    assert "every assignment was the identity" in caplog.text


def test_own_initialisation_sends_no_arrays_at_first():
    log = []
    strategy = LayerwiseFedMA(spec=SPEC, initialisation="own")
    run(strategy, rounds=2, intercept=spy(log))
    first = [shapes for i, shapes in log if i["round"] == 1 and i["stage"] == 0]
    assert first == [{}] * CLIENTS
    record = stage_records(strategy)[0]
    assert record.identity < 1.0
    second = [i["kind"] for i, _ in log if i["round"] == 2]
    assert set(second) == {UPDATE}


def test_clients_of_different_widths_share_one_model():
    class Narrow(Net):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Linear(2, 7), torch.nn.Linear(7, 8)

    def train(message, context, client):
        model = load_model(Narrow() if client == 0 else Net(), message)
        fit(model, client)
        return reply(message, model, client)

    strategy = LayerwiseFedMA(spec=SPEC, initialisation="own")
    result = run(strategy, make_app(train), rounds=2)
    assert not any(record.dropped for record in strategy.history)
    assert len(result.arrays["a.weight"].numpy()) >= 12


def test_a_new_client_may_be_wider_than_the_global_model():
    """All clients so far are narrow; one that joins later gets all units that there are."""

    class Narrow(Net):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Linear(2, 3), torch.nn.Linear(3, 8)

    def train(message, context, client):
        model = load_model(Narrow(), message)
        fit(model, client)
        return reply(message, model, client)

    strategy = LayerwiseFedMA(spec=SPEC, initialisation="own", matcher=IdentityMatching())
    grid = InProcessGrid(make_app(train), CLIENTS)
    late = grid.contexts.popitem()
    real = grid.get_node_ids

    def nodes():
        if len(stage_records(strategy)) == 3:
            grid.contexts.update([late])
        return real()

    grid.get_node_ids = nodes
    strategy.start(grid, initial_arrays(), num_rounds=2)
    assert not any(record.dropped for record in strategy.history)
    assert [record.answered for record in stage_records(strategy)] == [CLIENTS - 1] * 3 + [
        CLIENTS
    ] * 3


def test_growth_stops_at_its_cap():
    strategy = LayerwiseFedMA(
        spec=SPEC, initialisation="own", matcher=BBPMAP.reference(gamma=1e9), max_growth=1.5
    )
    run(strategy, rounds=2)
    assert stage_records(strategy)[-1].widths == {"a": 18, "b": 12}
    assert stage_records(strategy)[-1].growth > 1.0
    free = LayerwiseFedMA(
        spec=SPEC, initialisation="own", matcher=BBPMAP.reference(gamma=1e9), max_growth=9.0
    )
    run(free)
    assert stage_records(free)[-1].widths["a"] > 18


def test_equal_seeds_give_equal_results_whatever_the_node_ids():
    def final(node_ids, seed):
        strategy = LayerwiseFedMA(spec=SPEC, seed=seed, fraction_train=0.5, initialisation="own")
        return run(strategy, rounds=3, clients=6, node_ids=node_ids).arrays

    first = final([11, 12, 13, 14, 15, 16], seed=1)
    second = final([96, 45, 84, 23, 72, 31], seed=1)
    other = final([11, 12, 13, 14, 15, 16], seed=2)
    assert all(first[name].data == second[name].data for name in first)
    assert any(first[name].data != other[name].data for name in first)


def test_a_second_start_begins_anew():
    strategy = LayerwiseFedMA(spec=SPEC)
    grid = InProcessGrid(make_app(), CLIENTS)
    first = strategy.start(grid, initial_arrays(), num_rounds=2)
    second = strategy.start(grid, initial_arrays(), num_rounds=2)
    assert all(first.arrays[name].data == second.arrays[name].data for name in first.arrays)
    assert stage_records(strategy)[0].resent == ()


def test_a_client_outside_the_last_round_gets_a_full_state():
    log = []
    strategy = LayerwiseFedMA(spec=SPEC, fraction_train=0.5, min_train_nodes=2)
    run(strategy, rounds=4, intercept=spy(log))
    kinds = {(i["stage"], i["kind"]) for i, _ in log if i["round"] > 1}
    assert (0, FULL) in kinds
    assert (1, FULL) not in kinds


def test_stage_says_what_to_do():
    seen = {}

    def train(message, context, client):
        stage = Stage.from_message(message)
        seen[stage.name] = stage
        model = load_model(Net(), message)
        frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
        assert frozen == list(stage.frozen)
        assert set(stage.trainable) == set(model.state_dict()) - set(frozen)
        fit(model, client)
        return reply(message, model, client)

    strategy = LayerwiseFedMA(
        spec=SPEC,
        retrain_config={"local-epochs": 2},
        head_config={"local-epochs": 7, "lr": 0.5},
    )
    grid = InProcessGrid(make_app(train), CLIENTS)
    config = ConfigRecord({"local-epochs": 20, "lr": 0.1})
    strategy.start(grid, initial_arrays(), num_rounds=1, train_config=config)
    said = {name: (s.index, s.count, s.epochs, s.lr) for name, s in seen.items()}
    assert said == {"local": (0, 3, 20, 0.1), "retrain": (1, 3, 2, 0.1), "head": (2, 3, 7, 0.5)}
    assert config["local-epochs"] == 20


def test_records_count_and_describe():
    strategy = LayerwiseFedMA(spec=SPEC, initialisation="own")
    lines = []
    strategy.on_exchange = lines.append
    run(strategy, rounds=2)
    assert strategy.history.totals()["exchanges"] == 6
    assert strategy.history.totals()["client_epochs"] == 18
    assert lines == list(strategy.history)
    local = stage_records(strategy)[0]
    assert local.groups == ("a",)
    assert sum(local.popularity["a"]) == local.widths["a"]
    units = sum(count * held for count, held in enumerate(local.popularity["a"], start=1))
    assert units == 12 * CLIENTS
    assert local.objective["a"] > 0
