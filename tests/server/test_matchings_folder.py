"""Matchings that are saved by one run and used by another."""

import json

import numpy as np
import pytest

from fedma_flwr.matching import BBPMAP, IdentityMatching, Matching
from fedma_flwr.protocol import to_tensors
from fedma_flwr.server.matchings_folder import MatchingsFolder
from fedma_flwr.testing import InProcessGrid, SilentError
from tests.toy import CLIENTS, SPEC, LayerwiseFedMA, initial_arrays, make_app

ROUNDS = 2


FIRST = "round-000001.json"


class NoMatching:
    """A matcher that must not be asked, and no dataclass."""

    output = "mean"

    def match(self, units, *, weights=None, max_width=None, seed=0) -> Matching:
        raise AssertionError("it was asked")


def run(folder=None, rounds=ROUNDS, clients=CLIENTS, intercept=None, **options):
    settings = {"initialisation": "own", "fraction_evaluate": 0.0, "matcher": BBPMAP(gamma=3.0)}
    strategy = LayerwiseFedMA(spec=SPEC, matchings=folder, **{**settings, **options})
    grid = InProcessGrid(make_app(), clients, intercept=intercept)
    strategy.result = strategy.start(grid, initial_arrays(), num_rounds=rounds)
    return strategy


def story(strategy):
    """What a run has found: everything but times and bytes."""
    tensors = to_tensors(strategy.result.arrays)
    steps = [
        (r.name, r.widths, r.popularity, r.objective, r.identity)
        for r in strategy.history.exchanges
    ]
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}, steps


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder that a run has filled, and that run."""
    folder = tmp_path_factory.mktemp("matchings")
    return folder, run(folder)


@pytest.fixture
def copied(saved, tmp_path):
    """A copy to damage."""
    for file in saved[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def change(folder, edit, name=FIRST):
    content = json.loads((folder / name).read_text())
    edit(content)
    content.pop("sha256")  # whoever edits by hand leaves it out
    (folder / name).write_text(json.dumps(content))


def test_saving_changes_nothing_and_leaves_one_file_a_round(saved):
    folder, strategy = saved
    assert story(strategy) == story(run())
    assert sorted(file.name for file in folder.iterdir()) == [FIRST, "round-000002.json"]
    content = json.loads((folder / FIRST).read_text())
    assert set(content["groups"]) == set(SPEC.groups)
    assert list(content["groups"]["a"]["clients"]) == ["0", "1", "2", "3"]


@pytest.mark.parametrize("options", [{}, {"groups_per_stage": "all"}, {"one_shot": True}])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_run_from_saved_matchings_is_the_original_bit_for_bit(tmp_path, options, weighted):
    options = {**options, "weighted_units": weighted}
    original = run(tmp_path, **options)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    again = run(tmp_path, matcher=NoMatching(), **options)
    assert story(again) == story(original)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_rounds_without_a_file_are_matched_and_saved(copied, saved):
    (copied / "round-000002.json").unlink()
    again = run(copied)
    assert story(again) == story(saved[1])
    assert (copied / "round-000002.json").read_bytes() == (
        saved[0] / "round-000002.json"
    ).read_bytes()


def test_units_go_where_the_file_says(tmp_path):
    run(tmp_path, rounds=1, matcher=IdentityMatching())

    def swap(content):
        content["groups"]["b"]["clients"]["2"] = [1, 0, *range(2, 8)]

    change(tmp_path, swap)
    again = run(tmp_path, rounds=1, matcher=NoMatching())
    identical = {r.groups: r.identity for r in again.history.exchanges if r.groups}
    assert identical == {("a",): 1.0, ("b",): 0.75}


def test_a_client_that_fails_is_left_out_of_the_saved_matching(copied):
    heard = []

    def silent(message, context):
        if context.node_config["partition-id"] == 1:
            heard.append(message)
            if len(heard) > 1:  # it says who it is, and then no more
                raise SilentError

    again = run(copied, rounds=1, matcher=NoMatching(), intercept=silent)
    content = json.loads((copied / FIRST).read_text())["groups"]
    popularity = {group: held for r in again.history for group, held in r.popularity.items()}
    assert set(popularity) == {"a", "b"}
    for group, held in popularity.items():
        units = [units for key, units in content[group]["clients"].items() if key != "1"]
        counts = np.unique(np.concatenate(units), return_counts=True)[1]
        assert held[:3] == np.bincount(counts, minlength=CLIENTS)[1:].tolist()


def set_units(units):
    return lambda content: content["groups"]["b"]["clients"].update({"0": units})


BAD_FILES = {
    "two in one": (set_units([0] * 8), r"group 'b': .*client 0 has two units in one"),
    "negative": (set_units([-1, *range(1, 8)]), r"group 'b': .*expected global units 0"),
    "gap": (set_units([*range(7), 99]), r"group 'b': .*and every one of them, got 0 .. 99"),
    "fractions": (set_units([0.0, 1.0]), r"group 'b': client '0' has no list of whole numbers"),
    "truths": (set_units([True, False]), r"group 'b': client '0' has no list of whole numbers"),
    "empty": (set_units([]), r"group 'b': .*at least one unit"),
    "no clients": (lambda c: c["groups"]["b"].update(clients={}), r"group 'b': it has no clients"),
    "no objective": (lambda c: c["groups"]["b"].pop("objective"), r"group 'b': 'objective'"),
    "no sweeps": (lambda c: c["groups"]["b"].pop("sweeps"), r"group 'b': 'sweeps'"),
    "objective text": (
        lambda c: c["groups"]["b"].update(objective="1.5"),
        r"group 'b': objective '1\.5' and sweeps \d+ are not both numbers",
    ),
    "objective true": (lambda c: c["groups"]["b"].update(objective=True), "objective True and"),
    "sweeps text": (lambda c: c["groups"]["b"].update(sweeps="2"), "sweeps '2' are not both"),
    "sweeps fraction": (lambda c: c["groups"]["b"].update(sweeps=2.0), r"sweeps 2\.0 are not"),
    "clients a list": (
        lambda c: c["groups"]["b"].update(clients=[[0, 1]]),
        r"group 'b': it has no clients",
    ),
    "units a text": (set_units("01"), r"group 'b': client '0' has no list of whole numbers"),
    "group a list": (lambda c: c["groups"].update(b=[]), r"group 'b': "),
    "groups a list": (lambda c: c.update(groups=["a", "b"]), r"does not say what round 1 matched"),
    "other group": (lambda c: c["groups"].update(c=c["groups"].pop("b")), r"its groups are"),
    "other round": (lambda c: c.update(round=3), r"does not say what round 1 matched"),
    "other format": (lambda c: c.update(format=9), r"no saved matching of format 1"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_refused_before_anything_is_sent(copied, name):
    edit, reason = BAD_FILES[name]
    change(copied, edit)
    asked = []
    with pytest.raises(ValueError, match=reason) as error:
        run(copied, intercept=lambda message, context: asked.append(message))
    assert asked == []
    assert f"matchings: {copied / FIRST}" in str(error.value)
    assert "Remove the file" in str(error.value)


def test_an_objective_may_be_a_whole_number(copied, saved):
    def make_whole(content):
        content["groups"]["b"]["objective"] = 3

    change(copied, make_whole)
    again = run(copied, rounds=1, matcher=NoMatching())
    told = {group: value for r in again.history for group, value in r.objective.items()}
    assert told["b"] == 3.0
    assert isinstance(told["b"], float)


def test_files_of_all_rounds_to_come_are_checked_before_the_run(copied):
    change(copied, lambda content: content.update(format=9), "round-000002.json")
    run(copied, rounds=1)
    with pytest.raises(ValueError, match=r"round-000002\.json"):
        run(copied, rounds=2, intercept=lambda message, _: pytest.fail("something was sent"))


def test_no_flipped_bit_passes(saved, tmp_path):
    """Nor does a file whose digest got another name pass for one that never had any."""
    data, folder = (saved[0] / FIRST).read_bytes(), MatchingsFolder(tmp_path, {"a": 24, "b": 16})
    for bit in range(0, 8 * len(data), 5):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        (tmp_path / FIRST).write_bytes(bytes(flipped))
        with pytest.raises(ValueError, match=FIRST):
            folder.read(1)
    (tmp_path / FIRST).write_bytes(data.replace(b"sha256", b"sha257"))
    with pytest.raises(ValueError, match="it is damaged"):
        folder.read(1)


def other_key(message, context):
    """Client 3 calls itself otherwise than when the matchings were saved."""
    if message.content["fedma"]["kind"] == "hello":
        context.node_config["client-key"] = f"{context.node_config['partition-id']}".replace(
            "3", "other"
        )


def test_a_changed_client_key_is_refused_before_anything_is_trained(copied):
    """Also where the first round's cohort is complete and only a later one lacks it."""
    for sampled in (1.0, 0.5):
        for file in copied.iterdir():
            file.unlink()
        original = run(copied, fraction_train=sampled, rounds=3)
        assert len(original.history.exchanges) == 10  # a hello and three stages a round
        asked = []

        def intercept(message, context, asked=asked):
            asked.append(message.content["fedma"]["kind"])
            other_key(message, context)

        with pytest.raises(ValueError, match=r"matchings: .*client keys \['3'\].*Remove the file"):
            run(copied, fraction_train=sampled, rounds=3, intercept=intercept)
        assert set(asked) == {"hello"}


def test_clients_that_change_in_mid_run_cost_the_saved_matching_and_not_the_run(
    copied, saved, caplog
):
    before = {file: file.read_bytes() for file in copied.iterdir()}
    strategy = LayerwiseFedMA(
        spec=SPEC, matchings=copied, initialisation="own", matcher=BBPMAP(gamma=3.0),
        fraction_evaluate=0.0,
    )  # fmt: skip

    def newcomer(message, _):
        if message.content["fedma"]["round"] == 1 and message.content["fedma"]["stage"] == 2:
            grid.contexts[900] = everyone[900]

    grid = InProcessGrid(make_app(), CLIENTS + 1, node_ids=[100, 101, 102, 103, 900])
    everyone, grid.intercept = dict(grid.contexts), newcomer
    del grid.contexts[900]
    strategy.start(grid, initial_arrays(), num_rounds=2)
    assert strategy.history.exchanges[-1].answered == CLIENTS + 1
    assert "Round 2 is matched anew, and not saved" in caplog.text
    assert {file: file.read_bytes() for file in copied.iterdir()} == before


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x80"])
def test_a_file_that_is_no_json_object_is_refused(copied, text):
    (copied / FIRST).write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=FIRST):
        run(copied)


def test_too_many_units_are_refused(copied):
    def grow(content):
        clients = content["groups"]["b"]["clients"]
        clients.update({key: list(range(8 * i, 8 * i + 8)) for i, key in enumerate(clients)})

    change(copied, grow)
    with pytest.raises(ValueError, match="group 'b': it has 32 units, at most 16 may be"):
        run(copied)


def test_other_clients_are_refused_before_anything_is_trained(copied):
    with pytest.raises(ValueError, match=r"group 'a': it is of clients .*, this round's are"):
        run(copied, clients=3)


def test_clients_of_other_widths_are_refused_before_the_model_is_touched(copied):
    def shorten(content):
        clients = content["groups"]["a"]["clients"]
        clients.update({key: list(range(12)) for key in clients})
        clients["0"].pop()

    change(copied, shorten)
    with pytest.raises(
        ValueError, match=r"group 'a': .*\[11, 12, 12, 12\] units, .* \[12, 12, 12, 12\]"
    ):
        run(copied)


def test_posterior_output_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"matchings was .* output is 'posterior'"):
        run(tmp_path, matcher=BBPMAP.reference())
