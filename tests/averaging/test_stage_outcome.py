"""What is said of a stage: who held what, and whether anything but the identity was found."""

import numpy as np
import pytest
import torch

from fedma_flwr.averaging import StageOutcome
from fedma_flwr.matching import Matching
from fedma_flwr.server.history import ExchangeRecord, History
from fedma_flwr.structure import sequential_spec
from tests.toy import Net

SPEC = sequential_spec(Net())
SAME, SWAPPED = torch.tensor([0, 1, 2]), torch.tensor([1, 0, 2])


def outcome(*clients, head_by_class=False):
    """Of groups a and b, each of three units; a client is which of the two are the identity."""
    assignments = tuple(
        {group: SAME if same else SWAPPED for group, same in zip("ab", client, strict=True)}
        for client in clients
    )
    matchings = {
        group: Matching(
            tuple(own[group].numpy() for own in assignments),
            np.zeros((3, 1)),
            np.array([len(clients)] * 2 + [1]),
            7.0 if group == "a" else -0.5,
            2,
        )
        for group in "ab"
    }
    return StageOutcome({}, assignments, {"a": 3, "b": 3}, matchings, head_by_class)


@pytest.mark.parametrize(
    ("clients", "together", "a", "b"),
    [
        ([(True, False), (False, True)], 0.0, 0.5, 0.5),  # each in one group, nobody in both
        ([(True, True), (False, False)], 0.5, 0.5, 0.5),
        ([(True, True), (True, True)], 1.0, 1.0, 1.0),
        ([(True, True), (True, False), (True, True), (True, True)], 0.75, 1.0, 0.75),
    ],
)
def test_the_identity_share_counts_clients_that_have_it_in_all_groups(clients, together, a, b):
    found = outcome(*clients)
    assert found.identity_share == together
    assert found.identity_shares == {"a": a, "b": b}
    record = ExchangeRecord(1, 0, 2, "local", cohort=len(clients))
    record.describe(found, SPEC, "num-examples")
    assert record.identity == together


def test_without_a_matching_there_is_no_share():
    assert StageOutcome({}, ({}, {})).identity_share is None
    assert StageOutcome({}, ({}, {})).identity_shares == {}
    assert StageOutcome({}, ({}, {})).head_by_class is False


def test_a_narrow_client_is_the_identity_on_the_units_it_has():
    matching = Matching((np.arange(2), np.arange(3)), np.zeros((3, 1)), np.array([2, 2, 1]), 0.0, 1)
    own = ({"a": torch.arange(2)}, {"a": torch.arange(3)})
    assert StageOutcome({}, own, {"a": 3}, {"a": matching}).identity_share == 1.0


def test_a_record_counts_units_by_how_many_clients_hold_them(caplog):
    caplog.set_level("INFO", logger="flwr")
    record = ExchangeRecord(4, 0, 2, "local", cohort=3)
    record.describe(outcome((True, False), (True, True)), SPEC, "num-examples")
    # One client of the cohort failed: of three units one is held by one client, two by two.
    assert record.popularity == {"a": [1, 2, 0], "b": [1, 2, 0]}
    assert record.objective == {"a": 7.0, "b": -0.5}
    assert "a matched, 12 -> 3 units, identity for 100 %" in caplog.text
    assert "b matched, 8 -> 3 units, identity for 50 %" in caplog.text
    assert "the head was averaged" not in caplog.text


@pytest.mark.parametrize(("by_class", "how"), [(True, "class counts"), (False, "'num-examples'")])
def test_the_last_stage_says_how_the_head_was_averaged(caplog, by_class, how):
    caplog.set_level("INFO", logger="flwr")
    record = ExchangeRecord(4, 1, 2, "head", cohort=2)
    found = StageOutcome({}, ({}, {}), head_by_class=by_class)
    record.describe(found, SPEC, "num-examples")
    assert f"Round 4: the head was averaged by {how}" in caplog.text


@pytest.mark.parametrize(
    ("shares", "said"),
    [([1.0, None, 1.0], True), ([1.0, 0.9], False), ([None, None], False), ([], False)],
)
def test_a_round_of_identities_alone_is_named(caplog, shares, said):
    caplog.set_level("INFO", logger="flwr")
    history = History()
    history.add(ExchangeRecord(1, 0, 1, "local", identity=0.25))  # of another round
    for stage, share in enumerate(shares):
        history.add(ExchangeRecord(2, stage, 3, "local", identity=share))
    history.conclude(2)
    assert ("every assignment was the identity" in caplog.text) == said
