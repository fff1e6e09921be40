"""The hello, and the client keys that it tells."""

import pytest
from flwr.serverapp.exception import AggregationError

from fedma_flwr import FedAvg, fedma_mod
from fedma_flwr.server.client_keys import ClientKeys
from fedma_flwr.testing import InProcessGrid, SilentError
from tests.toy import SPEC, LayerwiseFedMA, initial_arrays, make_app

FIRST = 100  # node id of client 0


def start(strategy, grid, rounds=1):
    return strategy.start(grid, initial_arrays(), num_rounds=rounds)


def stages(strategy):
    return [record for record in strategy.history if record.name != "hello"]


def answer_hello(change, client=1):
    """A mod in front of ours: one client's answer to the hello is changed."""

    def mod(message, context, call_next):
        is_hello = "fedma" in message.content and message.content["fedma"]["kind"] == "hello"
        answer = call_next(message, context)
        if is_hello and context.node_config["partition-id"] == client:
            change(answer)
        return answer

    return mod


def fail(answer):
    raise RuntimeError("out of order")


def be_silent(answer):
    raise SilentError


BAD_HELLOS = {
    "raises": fail,
    "silent": be_silent,
    "without a record": lambda answer: answer.content.pop("fedma"),
    "without a key": lambda answer: answer.content["fedma"].pop("client-key"),
    "too long a key": lambda answer: answer.content["fedma"].update({"client-key": "k" * 201}),
    "no version": lambda answer: answer.content["fedma"].update({"version": "x"}),
}


@pytest.mark.parametrize("name", BAD_HELLOS)
def test_one_bad_hello_among_good_ones_harms_nobody(name):
    """Its client takes part by its node id, and its first stage tells its name."""
    grid = InProcessGrid(make_app(mods=(answer_hello(BAD_HELLOS[name]), fedma_mod)), 4)
    strategy = LayerwiseFedMA(spec=SPEC, fraction_evaluate=0.0)
    start(strategy, grid, rounds=2)
    keys = [strategy.client_key(node) for node in grid.contexts]
    assert keys == ["0", "1", "2", "3"]
    assert [record.answered for record in stages(strategy)] == [4] * 6
    hellos = [record for record in strategy.history if record.name == "hello"]
    assert [(record.round, record.cohort) for record in hellos] == [(1, 4)]
    good = 3 if name in {"raises", "silent"} else 4
    assert hellos[0].answered == good


def test_a_key_may_be_as_long_as_that():
    change = answer_hello(lambda a: a.content["fedma"].update({"client-key": "k" * 200}))
    grid = InProcessGrid(make_app(mods=(change, fedma_mod)), 4)
    strategy = LayerwiseFedMA(spec=SPEC, fraction_evaluate=0.0)
    start(strategy, grid)
    assert strategy.client_key(FIRST + 1) == "k" * 200


def test_who_is_known_is_not_asked_again():
    strategy = LayerwiseFedMA(spec=SPEC, fraction_evaluate=0.0)
    start(strategy, InProcessGrid(make_app(steps=0), 4), rounds=3)
    hellos = [record for record in strategy.history if record.name == "hello"]
    assert [(r.round, r.stage, r.stages, r.cohort, r.answered) for r in hellos] == [(1, 0, 1, 4, 4)]
    assert hellos[0].bytes_down > 0
    assert hellos[0].bytes_up > 0


def test_what_most_clients_said_is_repeated_when_nobody_has_the_mod():
    def refuse(message, context):
        client = context.node_config["partition-id"]
        raise RuntimeError("my fault alone" if client == 0 else "no such model")

    with pytest.raises(AggregationError, match=r"None of 4 .* The clients said: .*no such model"):
        start(LayerwiseFedMA(spec=SPEC), InProcessGrid(make_app(), 4, intercept=refuse))


def test_silence_alone_does_not_end_the_run_at_the_hello():
    """Nobody says that the mod is missing: the stage's own deadline judges."""

    def silent(message, context):
        raise SilentError

    with pytest.raises(AggregationError, match=r"every client failed in the local stage"):
        start(LayerwiseFedMA(spec=SPEC), InProcessGrid(make_app(), 4, intercept=silent))


def test_fedavg_does_without_the_mod_and_says_what_follows(caplog):
    caplog.set_level("INFO", logger="flwr")
    grid = InProcessGrid(make_app(steps=0, mods=()), 4)
    strategy = FedAvg(fraction_evaluate=0.0)
    start(strategy, grid)
    assert "Clients do not use fedma_mod" in caplog.text
    assert strategy.client_key(FIRST) == str(FIRST)


# ---------------------------------------------------------------- client keys


def test_keys_are_in_the_order_of_numbers_then_of_names():
    keys = ClientKeys()
    names = ["b", "10", "9", "a", "٣", "1.5", "-1"]
    for node, name in enumerate(names):
        keys.take(node, name, set(range(len(names))))
    assert [keys.key(node) for node in keys.in_order(range(len(names)))] == [
        "9", "10", "-1", "1.5", "a", "b", "٣",
    ]  # fmt: skip


def test_a_node_that_is_gone_loses_its_key_and_one_online_keeps_it():
    keys = ClientKeys()
    assert not keys
    keys.take(1, "x", {1})
    keys.take(2, "x", {1, 2})  # both are online: the newcomer goes by its node id
    assert (keys.key(1), keys.key(2)) == ("x", "2")
    assert keys.unknown([3, 2, 1, 0]) == [0, 3]
    keys.take(4, "x", {2, 4})  # node 1 is gone
    assert (keys.key(1), keys.key(4)) == ("1", "x")
    assert len(keys) == 2
