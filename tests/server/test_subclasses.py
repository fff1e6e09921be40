"""A user's subclass of FedMA: whatever it overrides works, or is refused by name."""

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg

from fedma_flwr import FedAvg, FedMA
from tests.server.subclassed import PLANS, make, run, same, stages
from tests.toy import CLIENTS, Net, initial_arrays


@pytest.fixture(params=PLANS)
def plan(request):
    return PLANS[request.param]


# ---------------------------------------------------------------- start


class OwnStart(FedMA):
    """As Flower's advanced-pytorch does it: Flower's loop, written anew."""

    def start(self, grid, initial_arrays, num_rounds=3, timeout=3600, train_config=None, **_):
        arrays, config = initial_arrays, train_config or ConfigRecord()
        for number in range(1, num_rounds + 1):
            messages = self.configure_train(number, arrays, config, grid)
            replies = grid.send_and_receive(messages=messages, timeout=timeout)
            new, _ = self.aggregate_train(number, replies)
            arrays = new or arrays
        return arrays


def test_a_start_of_ones_own_gives_what_ours_gives(plan):
    strategy = make(OwnStart, plan)
    arrays = run(strategy, rounds=2)
    assert same(arrays, run(make(FedMA, plan), rounds=2).arrays)
    assert same(run(strategy, rounds=2), arrays)  # from round 1 it is another run


def test_a_start_of_ones_own_can_be_resumed(tmp_path):
    whole = run(make(OwnStart), rounds=3)
    run(make(OwnStart, checkpoint_dir=tmp_path), rounds=2)
    resumed = make(OwnStart, checkpoint_dir=tmp_path, resume=True)
    assert same(run(resumed, rounds=3), whole)


def test_a_start_of_ones_own_around_fedavg():
    class Own(FedAvg):
        start = OwnStart.start

    arrays = run(Own(fraction_evaluate=0.0), train_config=ConfigRecord({"fedma": 0}))
    assert not same(arrays, initial_arrays())


# ---------------------------------------------------------------- configure_train


def test_entries_of_a_clients_own_reach_every_stage(plan):
    class PerClient(FedMA):
        def configure_train(self, server_round, arrays, config, grid):
            for message in super().configure_train(server_round, arrays, config, grid):
                node = message.metadata.dst_node_id
                message.content["config"]["prox"] = float(node)
                del message.content["config"]["lr"]
                message.content["more"] = ConfigRecord({"of": node})
                message.content["drift"] = ArrayRecord([np.ones(3)])
                yield message  # a generator will do

    seen, strategy = [], make(PerClient, plan)
    run(strategy, seen, train_config=ConfigRecord({"lr": 0.1, "momentum": 0.9}))
    assert len(seen) == CLIENTS * len(strategy.settings.plan)
    for client, _, content in seen:
        node = 100 + client
        assert (content["config"]["prox"], content["more"]["of"]) == (float(node), node)
        assert "lr" not in content["config"]
        assert content["config"]["momentum"] == 0.9
        assert len(content["drift"]) == 1


def test_what_a_stage_overrides_wins_over_a_clients_own_entries():
    class PerClient(FedMA):
        def configure_train(self, *arguments):
            messages = super().configure_train(*arguments)
            for message in messages:
                message.content["config"]["local-epochs"] = 7
            return messages

    seen = []
    plan = {**PLANS["layer by layer"], "retrain_config": {"local-epochs": 2}}
    run(make(PerClient, plan), seen)
    epochs = {stage: content["config"]["local-epochs"] for _, stage, content in seen}
    assert epochs == {0: 7, 1: 2, 2: 7}


def test_messages_may_be_made_anew():
    class Anew(FedMA):
        def configure_train(self, *arguments):
            return [
                Message(
                    RecordDict({**m.content, "config": ConfigRecord({"new": 1})}),
                    dst_node_id=m.metadata.dst_node_id,
                    message_type="train",
                )
                for m in super().configure_train(*arguments)
            ]

    seen, strategy = [], make(Anew)
    run(strategy, seen)
    assert {content["config"]["new"] for _, _, content in seen} == {1}
    assert [record.answered for record in stages(strategy)] == [CLIENTS] * 2


@pytest.mark.parametrize("kind", ["subclass", "wrapper", "FedAvg"])
def test_a_client_that_is_left_out_is_no_time_out(kind):
    """A smaller cohort in every stage; nobody is asked for moments who was left out."""
    base = FedAvg if kind == "FedAvg" else FedMA

    class Fewer(base):
        def configure_train(self, *arguments):
            return list(super().configure_train(*arguments))[1:3]

    class Wrapper(FlowerFedAvg):
        def __init__(self, inner):
            super().__init__(fraction_evaluate=0.0)
            self.inner = inner

        def configure_train(self, *arguments):
            return list(self.inner.configure_train(*arguments))[1:3]

        def aggregate_train(self, server_round, replies):
            return self.inner.aggregate_train(server_round, replies)

    seen = []
    if kind == "FedAvg":
        inner = outer = Fewer(fraction_evaluate=0.0)
    else:
        inner = make(Fewer if kind == "subclass" else FedMA)
        outer = inner if kind == "subclass" else Wrapper(inner)
    result = run(outer, None if kind == "FedAvg" else seen)
    assert [record.cohort for record in stages(inner)] == [2] * len(stages(inner))
    assert [record.answered for record in stages(inner)] == [2] * len(stages(inner))
    assert not any(record.dropped for record in stages(inner))
    assert {client for client, _, _ in seen} <= {1, 2}
    assert not same(result.arrays, initial_arrays())


def test_nobody_left_is_a_round_given_up():
    class Nobody(FedMA):
        def configure_train(self, *arguments):
            super().configure_train(*arguments)

    strategy = make(Nobody)
    result = run(strategy, rounds=2)
    assert "all were left out" in strategy.history.given_up[1]
    assert same(result.arrays, initial_arrays())


def own_messages(self, server_round, arrays, config, grid):
    content = RecordDict({"arrays": arrays, "config": config})
    return [Message(content, node, "train") for node in grid.get_node_ids()]


def without_record(self, *arguments):
    messages = FedMA.configure_train(self, *arguments)
    for message in messages:
        message.content.pop("fedma")
    return messages


def other_arrays(self, *arguments):
    messages = FedMA.configure_train(self, *arguments)
    for message in messages:
        message.content["arrays"] = ArrayRecord(Net().state_dict())
    return messages


def twice(self, *arguments):
    return list(FedMA.configure_train(self, *arguments)) * 2


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (own_messages, r"messages of its own.*super\(\)\.configure_train"),
        (without_record, "without FedMA's record"),
        (other_arrays, "changed the arrays"),
        (twice, "a second message"),
    ],
)
def test_what_no_stage_can_work_with_is_refused_before_anything_is_sent(method, said):
    seen = []
    kind = type("Mine", (FedMA,), {"configure_train": method})
    with pytest.raises(ValueError, match=rf"Mine\.configure_train.*{said}"):
        run(make(kind), seen)
    assert not seen


def test_a_mixin_before_fedma_is_seen_as_well():
    class Mixin:
        def configure_train(self, *arguments):
            return super().configure_train(*arguments)[:2]

    class Mixed(Mixin, FedMA):
        pass

    strategy = make(Mixed)
    run(strategy)
    assert [record.cohort for record in stages(strategy)] == [2, 2]


# ---------------------------------------------------------------- aggregate_train


def test_replies_that_are_left_out_are_named_so():
    class Fewer(FedMA):
        def aggregate_train(self, server_round, replies):
            return super().aggregate_train(server_round, list(replies)[1:])

    strategy = make(Fewer, head_fraction=0.0)
    run(strategy)
    first, last = stages(strategy)
    assert first.dropped == {"0": "Fewer.aggregate_train has left out its reply"}
    assert (first.answered, last.cohort, last.answered) == (3, 3, 3)


def test_arrays_that_an_override_changes_are_what_the_next_round_begins_with(plan):
    class Zero(FedMA):
        def aggregate_train(self, server_round, replies):
            arrays, metrics = super().aggregate_train(server_round, replies)
            state = arrays.to_torch_state_dict()
            state["a.bias"] = state["a.bias"] * 0 + server_round
            return ArrayRecord(state), metrics

    seen = []
    result = run(make(Zero, plan, max_growth=1.0), seen, rounds=2)
    assert set(result.arrays["a.bias"].numpy()) == {2.0}
    second = [content for _, stage, content in seen if stage == 0][CLIENTS:]
    assert all(set(c["arrays"]["a.bias"].numpy()) == {1.0} for c in second)


def test_arrays_of_other_shapes_are_refused():
    class Smaller(FedMA):
        def aggregate_train(self, server_round, replies):
            super().aggregate_train(server_round, replies)
            return ArrayRecord({"a.bias": initial_arrays()["a.bias"]}), None

    with pytest.raises(ValueError, match=r"tensor 'a\.weight' is missing"):
        run(make(Smaller), rounds=2)


def test_a_round_that_is_not_handed_on_is_given_up():
    class Skips(FedMA):
        def aggregate_train(self, server_round, replies):
            return None if server_round == 1 else super().aggregate_train(server_round, replies)

    strategy = make(Skips)
    result = run(strategy, rounds=2)
    assert "Skips.aggregate_train did not hand it on" in strategy.history.given_up[1]
    assert list(result.train_metrics_clientapp) == [2]


def test_an_aggregation_of_ones_own_is_refused_and_fedavgs_is_not():
    def aggregate_train(self, server_round, replies):
        return FlowerFedAvg.aggregate_train(self, server_round, replies)

    with pytest.raises(ValueError, match=r"Mine\.aggregate_train returned arrays without calling"):
        run(make(type("Mine", (FedMA,), {"aggregate_train": aggregate_train})))
    fedavg = type("Mine", (FedAvg,), {"aggregate_train": aggregate_train})
    assert not same(run(fedavg(fraction_evaluate=0.0)).arrays, initial_arrays())


def test_changed_replies_are_refused_where_later_stages_would_not_be_changed():
    class Clips(FedMA):
        def aggregate_train(self, server_round, replies):
            for answer in replies:
                state = answer.content["arrays"].to_torch_state_dict()
                answer.content["arrays"] = ArrayRecord({n: 0 * t for n, t in state.items()})
            return super().aggregate_train(server_round, replies)

    with pytest.raises(ValueError, match=r"Clips\.aggregate_train changed the arrays of a reply"):
        run(make(Clips))
    result = run(make(Clips, PLANS["one shot"]))
    assert not result.arrays["a.weight"].numpy().any()
