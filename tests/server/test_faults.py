"""What goes wrong with clients: dropped, named, asked again, given up, and never more than that."""

import numpy as np
import pytest
from flwr.app import Array, ConfigRecord, Error, Message
from flwr.serverapp.exception import AggregationError

from fedma_flwr import FedAvg, fedma_mod, load_model, protocol
from fedma_flwr.testing import InProcessGrid, SilentError
from tests.toy import CLIENTS, SPEC, LayerwiseFedMA, Net, fit, initial_arrays, make_app, reply

STAGES = 3
BAD = 2  # the client that misbehaves


def run(strategy, app=None, rounds=1, **grid_options):
    grid = InProcessGrid(app or make_app(), CLIENTS, **grid_options)
    return strategy.start(grid, initial_arrays(), num_rounds=rounds)


def instruction(message):
    return message.content.get("fedma") or ConfigRecord({"kind": "", "stage": -1, "round": -1})


def at(stage, server_round=1, client=BAD):
    """Whether a message is for one client in one stage."""

    def hit(message, context):
        record = instruction(message)
        return (
            context.node_config["partition-id"] == client
            and record["kind"] != "hello"
            and (record["stage"], record["round"]) == (stage, server_round)
        )

    return hit


def dropped(strategy):
    return {
        (record.round, record.stage, key): reason
        for record in strategy.history
        for key, reason in record.dropped.items()
    }


def finite(arrays):
    return all(np.isfinite(array.numpy()).all() for array in arrays.values())


@pytest.mark.parametrize("stage", range(STAGES))
@pytest.mark.parametrize("kind", ["raises", "silent"])
def test_a_client_that_fails_in_any_stage_does_not_stop_the_round(stage, kind):
    hit = at(stage)

    def intercept(message, context):
        if hit(message, context):
            raise SilentError if kind == "silent" else RuntimeError("out of memory")

    strategy = LayerwiseFedMA(spec=SPEC)
    result = run(strategy, rounds=2, intercept=intercept)
    reason = dropped(strategy)[(1, stage, str(BAD))]
    assert ("no reply" if kind == "silent" else "out of memory") in reason
    assert len(dropped(strategy)) == 1
    assert finite(result.arrays)
    second = [record for record in strategy.history if record.round == 2 and record.name != "hello"]
    assert [record.answered for record in second] == [CLIENTS] * STAGES


@pytest.mark.parametrize("stage", range(STAGES))
def test_a_client_that_lost_its_state_is_sent_everything_in_the_same_stage(stage):
    hit = at(stage, server_round=2)
    lost = []

    def intercept(message, context):
        if hit(message, context) and not lost:
            lost.append(instruction(message)["kind"])
            context.state.clear()

    strategy = LayerwiseFedMA(spec=SPEC, initialisation="own")
    result = run(strategy, rounds=3, intercept=intercept)
    assert lost == ["update"]
    assert not dropped(strategy)
    record = next(r for r in strategy.history if (r.round, r.stage) == (2, stage))
    assert record.resent == (str(BAD),)
    assert record.answered == CLIENTS
    assert finite(result.arrays)


def test_a_client_without_any_memory_still_takes_part_in_each_stage():
    def intercept(message, context):
        if context.node_config["partition-id"] == BAD:
            context.state.clear()

    strategy = LayerwiseFedMA(spec=SPEC)
    run(strategy, rounds=2, intercept=intercept)
    assert not dropped(strategy)


def tamper(change):
    """A train function whose reply one client changes before the mod sees it."""

    def train(message, context, client):
        model = load_model(Net(), message)
        fit(model, client)
        answer = reply(message, model, client)
        if client == BAD:
            change(answer)
        return answer

    return make_app(train)


def forge(change, stage=0):
    """An app whose mod's reply one client changes before the server sees it."""
    hit = at(stage)

    def liar(message, context, call_next):
        is_hit = hit(message, context)
        answer = call_next(message, context)
        if is_hit:
            change(answer)
        return answer

    return make_app(mods=(liar, fedma_mod))


def test_own_initialisation_bounds_the_widths_that_clients_bring():
    strategy = LayerwiseFedMA(spec=SPEC, initialisation="own", max_growth=2.0)
    wide = Array(np.zeros((25, 2), np.float32)), Array(np.zeros((25,), np.float32))

    def change(answer):
        answer.content["arrays"]["a.weight"], answer.content["arrays"]["a.bias"] = wide

    run(strategy, forge(change))
    assert "25 units wide" in dropped(strategy)[(1, 0, str(BAD))]


def test_metrics_of_other_kinds_do_not_break_the_aggregation():
    def change(answer):
        answer.content["metrics"]["epochs"] = [1.0, 2.0]

    strategy = LayerwiseFedMA(spec=SPEC)
    result = run(strategy, forge(change, stage=STAGES - 1))
    assert result.train_metrics_clientapp[1]["epochs"] == 3


def test_skipping_load_model_is_found_and_said():
    def train(message, context, client):
        model = Net()
        state = message.content["arrays"].to_torch_state_dict()
        model.load_state_dict(state)  # loads, but freezes nothing
        fit(model, client)
        return reply(message, model, client)

    with pytest.raises(AggregationError, match=r"load_model\(Net\(\), msg\)"):
        run(LayerwiseFedMA(spec=SPEC), make_app(train))


def test_a_client_app_without_the_mod_is_told_what_to_add():
    with pytest.raises(AggregationError, match=r"mods=\[fedma_mod\]"):
        run(LayerwiseFedMA(spec=SPEC), make_app(mods=()))


def test_fedavg_runs_with_and_without_the_mod():
    def train(message, context, client):
        state = message.content["arrays"].to_torch_state_dict()
        model = Net()
        model.load_state_dict(state)
        fit(model, client)
        return reply(message, model, client)

    with_mod = run(FedAvg(), make_app(train))
    without = run(FedAvg(), make_app(train, mods=()))
    assert all(with_mod.arrays[name].data == without.arrays[name].data for name in with_mod.arrays)


def test_a_server_of_another_version_is_refused_by_the_client(monkeypatch):
    real = protocol.Instruction.to_record

    def newer(self):
        record = real(self)
        record["version"] = 99
        return record

    monkeypatch.setattr(protocol.Instruction, "to_record", newer)
    with pytest.raises(AggregationError, match=r"version 99.*same version of fedma-flwr"):
        run(LayerwiseFedMA(spec=SPEC))


def test_a_train_function_that_raises_everywhere_fails_the_run_with_its_reason():
    def train(message, context, client):
        raise ValueError("the disk is full")

    with pytest.raises(AggregationError, match=r"every client failed.*the disk is full"):
        run(LayerwiseFedMA(spec=SPEC), make_app(train))
    with pytest.raises(AggregationError, match=r"every client failed.*the disk is full"):
        run(FedAvg(), make_app(train))


def test_a_round_below_min_train_nodes_is_given_up_and_the_model_kept(caplog):
    def intercept(message, context):
        record = instruction(message)
        if record["round"] == 2 and record["stage"] == 1 and context.node_id != 100:
            raise RuntimeError("gone")

    models = []
    strategy = LayerwiseFedMA(spec=SPEC)
    grid = InProcessGrid(make_app(), CLIENTS, intercept=intercept)
    result = strategy.start(
        grid,
        initial_arrays(),
        num_rounds=3,
        evaluate_fn=lambda _, arrays: models.append(arrays["a.weight"].data),
    )
    assert models[2] == models[1]
    assert models[3] != models[2]
    assert finite(result.arrays)
    assert "given up" in caplog.text
    third = [r for r in strategy.history if r.round == 3 and r.stage == 0 and r.name != "hello"]
    assert third[0].answered == CLIENTS


def test_a_run_whose_rounds_are_all_given_up_returns_its_initial_arrays():
    def intercept(message, context):
        if instruction(message)["stage"] == 1 and context.node_id != 100:
            raise RuntimeError("gone")

    result = run(LayerwiseFedMA(spec=SPEC), rounds=2, intercept=intercept)
    assert result.arrays["a.weight"].data == initial_arrays()["a.weight"].data


def test_too_few_nodes_fail_the_run_after_the_deadline():
    grid = InProcessGrid(make_app(), 1)
    with pytest.raises(AggregationError, match=r"2 nodes are needed.*only 1"):
        LayerwiseFedMA(spec=SPEC, node_timeout=0.01).start(grid, initial_arrays())


def test_a_late_write_of_a_timed_out_client_does_no_harm():
    """The client answers nothing, but what it kept is of the stage; next round it is sent all."""
    kinds = []

    def silent_but_working(message, context, call_next):
        record = instruction(message)
        answer = call_next(message, context)
        if context.node_config["partition-id"] == BAD and record["kind"] in ("full", "update"):
            kinds.append((record["round"], record["stage"], record["kind"]))
            if (record["round"], record["stage"]) == (1, 1):
                answer.content["fedma"]["holds"] = "late"
        return answer

    strategy = LayerwiseFedMA(spec=SPEC)
    run(strategy, make_app(mods=(silent_but_working, fedma_mod)), rounds=2)
    assert kinds[-3:] == [(2, 0, "full"), (2, 1, "update"), (2, 2, "update")]


def test_two_nodes_with_one_client_key_are_told_apart(caplog):
    grid = InProcessGrid(make_app(), CLIENTS)
    for context in grid.contexts.values():
        context.node_config["client-key"] = "hospital"
    strategy = LayerwiseFedMA(spec=SPEC)
    strategy.start(grid, initial_arrays(), num_rounds=1)
    assert "both call themselves client hospital" in caplog.text
    assert strategy.history.exchanges[-1].answered == CLIENTS


def test_a_node_with_a_new_id_is_the_same_client():
    strategy = LayerwiseFedMA(spec=SPEC)
    grid = InProcessGrid(make_app(), CLIENTS)
    real = grid.get_node_ids

    def nodes():
        done = any(record.round == 1 and record.stage == 1 for record in strategy.history)
        if done and 103 in grid.contexts:
            grid.contexts[203] = grid.contexts.pop(103)
            grid.contexts[203].state.clear()
        return real()

    grid.get_node_ids = nodes
    strategy.start(grid, initial_arrays(), num_rounds=2)
    assert strategy.client_key(203) == "3"
    assert not dropped(strategy)


def test_an_error_reply_from_the_superlink_is_laid_at_the_right_door():
    """Errors that the SuperLink makes name node 1 as their source."""
    hit = at(1)

    def intercept(message, context):
        if hit(message, context):
            answer = Message(Error(3, "message expired"), reply_to=message)
            answer.metadata.__dict__["_src_node_id"] = 1
            return answer
        return None

    strategy = LayerwiseFedMA(spec=SPEC)
    run(strategy, intercept=intercept)
    assert dropped(strategy) == {(1, 1, str(BAD)): "error 3: message expired"}
