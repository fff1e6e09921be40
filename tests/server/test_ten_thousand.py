"""Ten thousand malformed, faulty or poisonous replies, drawn by hypothesis."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fedma_flwr.matching import BBPMAP, IdentityMatching
from fedma_flwr.protocol import Report
from fedma_flwr.testing import FIRST_NODE_ID, InProcessGrid
from tests.server.test_adversary import COUNTS, REFUSED, metric, pick, quiet
from tests.toy import SPEC, LayerwiseFedMA, initial_arrays, make_app

HONEST, HOSTILE, ROUNDS, RUNS, WANTED = 3, 140, 4, 21, 10_000


def every(change):
    """Change all tensors of a reply, keeping shapes and dtypes."""

    def attack(answer, seed):
        arrays, rng = answer.content["arrays"], np.random.default_rng(seed)
        for name in list(arrays):
            values = pick(answer, sorted(arrays).index(name))[2]
            with np.errstate(over="ignore"):
                arrays[name] = Array(change(values, rng).astype(values.dtype))

    return attack


FAULTS = {"silent": None, "raises": Error(2, "out of memory"), "expired": Error(3, "")}
# Well formed: bounded, capped, or accepted.
POISON = {
    "times 9": every(lambda values, _: -9 * values),
    "times 1e6": every(lambda values, _: 1e6 * values),
    "times 1e36": every(lambda values, _: 1e36 * values),
    "largest": every(lambda values, rng: rng.choice([-1e9, 1e9], size=values.shape)),
    "denormal": every(lambda values, rng: 1e-40 * rng.normal(size=values.shape)),
    "zeros": every(lambda values, _: 0 * values),
    "new units": every(lambda values, rng: 3 * rng.normal(size=values.shape)),
    "many examples": metric("num-examples", [2**53, 1e-300, 1]),
    "many of a class": metric("class-counts", [[2**53, 0], [0, 0], [1], [1e-300, 2.0**53]]),
    "other metrics": metric("epochs", [*COUNTS, -1e300]),
}
KINDS = {
    "refused at once": list(REFUSED),  # after a fault a client is asked again, and takes part
    "refused in any stage": [*REFUSED, *FAULTS],
    "poison": [*REFUSED, *FAULTS, *POISON],
}
OPTIONS = [
    {"matcher": IdentityMatching()},
    {"matcher": BBPMAP(gamma=100.0), "max_growth": 1.5},
    {"initialisation": "own", "averaging": "median"},
    {"averaging": "trimmed_mean", "weighted_units": True, "matcher": IdentityMatching()},
    {"wire_dtype": "bfloat16", "matcher": IdentityMatching()},
    {"wire_dtype": "float16", "groups_per_stage": "all"},
    {"one_shot": True},
]


class HostileGrid(InProcessGrid):
    """Honest clients first; the others answer with a changed copy of an honest client's reply."""

    def __init__(self, plan):
        super().__init__(make_app(steps=1), HONEST + len(plan))
        self.plan, self.attacks = plan, 0

    def _answer(self, message):
        client = message.metadata.dst_node_id - FIRST_NODE_ID
        instruction = message.content["fedma"]
        if client < HONEST:
            self.honest = super()._answer(message)
            return self.honest
        if instruction["kind"] == "hello":
            report = Report("hello", client_key=str(client)).to_record()
            return Message(RecordDict({"fedma": report}), reply_to=message)
        kind, stage, seed = self.plan[client - HONEST]
        answer = Message(self.copy(instruction), reply_to=message)
        if instruction["stage"] != stage:
            return answer
        self.attacks += 1
        if kind in FAULTS:
            error = FAULTS[kind]
            return None if error is None else Message(error, reply_to=message)
        (REFUSED.get(kind) or POISON[kind])(answer, seed + instruction["round"])
        return answer

    def copy(self, instruction):
        """What an honest client has sent, with this client's token."""
        content = self.honest.content
        return RecordDict(
            {
                "arrays": ArrayRecord(dict(content["arrays"])),
                "metrics": MetricRecord(dict(content["metrics"])),
                "fedma": Report("done", holds=instruction["gives"]).to_record(),
            }
        )


def attack(plan, options):
    strategy = LayerwiseFedMA(spec=SPEC, fraction_evaluate=0.0, seed=1, **options)
    grid = HostileGrid(plan)
    with quiet():
        result = strategy.start(grid, initial_arrays(), num_rounds=ROUNDS)
    assert result.arrays.keys() == initial_arrays().keys()
    assert all(np.isfinite(array.numpy()).all() for array in result.arrays.values())
    limits = strategy.settings.max_widths
    for record in strategy.history:
        assert all(width <= limits[group] for group, width in record.widths.items())
    return strategy, result, grid.attacks


def plans(draw, kinds, stages):
    attacks = st.tuples(st.sampled_from(kinds), st.sampled_from(stages), st.integers(0, 999))
    return draw(st.lists(attacks, min_size=HOSTILE, max_size=HOSTILE))


@pytest.mark.long
def test_ten_thousand_hostile_replies_do_no_harm():
    """None of them ends a run, is averaged in if it is malformed, or drops an honest client."""
    done = []
    alone = {}

    @settings(
        max_examples=RUNS,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def drive(data):
        mode = data.draw(st.sampled_from(list(KINDS)))
        number = data.draw(st.integers(0, len(OPTIONS) - 1))
        options = OPTIONS[number]
        last = 0 if "one_shot" in options else 1 if "groups_per_stage" in options else 2
        stages = [0] if mode == "refused at once" else list(range(last + 1))
        plan = plans(data.draw, KINDS[mode], stages)
        strategy, result, attacks = attack(plan, options)
        if mode != "poison":
            dropped = {key for record in strategy.history for key in record.dropped}
            assert not dropped & {str(client) for client in range(HONEST)}
            assert not strategy.history.given_up
        if mode == "refused at once":
            if number not in alone:
                alone[number] = attack([], options)[1].arrays
            for name, array in alone[number].items():
                assert result.arrays[name].data == array.data
        done.append(attacks)

    drive()
    assert sum(done) >= WANTED
