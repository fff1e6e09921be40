"""A communication round by itself: what its clients are told of the matchings so far."""

import pytest
import torch

from fedma_flwr.averaging import ClientUpdate
from fedma_flwr.matching import IdentityMatching
from fedma_flwr.server.global_model import GlobalModel
from fedma_flwr.server.round import CommunicationRound
from fedma_flwr.structure import PermutationSpec
from tests.toy import LayerwiseFedMA

SPEC = PermutationSpec({"g": 2, "h": 3}, {"a": "g, 1", "b": "h, g", "c": "1, h"})
MODEL = {"a": torch.ones(2, 1), "b": torch.ones(3, 2), "c": torch.ones(1, 3)}
NODES = {7: "x", 9: "y"}


@pytest.fixture
def current():
    """A round of three stages of which the first two are settled; units are where they were."""
    settings = LayerwiseFedMA(spec=SPEC, matcher=IdentityMatching()).settings
    found = CommunicationRound(
        settings=settings,
        model=GlobalModel(MODEL),
        number=1,
        members=NODES.items(),
        config={},
        nonce="n",
    )
    for stage, name in enumerate(("a", "b")):
        found.settle(stage, {node: ClientUpdate({name: MODEL[name]}, 1.0) for node in NODES})
    return found


@pytest.mark.parametrize(
    ("stage", "held", "groups"),
    [
        (0, "", {}),
        (1, "n.1.0", {"g": [0, 1]}),
        (1, "", {"g": [0, 1]}),
        (2, "n.1.1", {"h": [0, 1, 2]}),  # an update: the rest has been told
        (2, "n.1.0", {"g": [0, 1], "h": [0, 1, 2]}),  # of another stage: everything
        (2, "", {"g": [0, 1], "h": [0, 1, 2]}),
    ],
)
def test_an_update_tells_the_last_matchings_and_a_full_message_all(current, stage, held, groups):
    told = current.outgoing(current.members[9], stage, held).instruction
    assert {group: units.tolist() for group, units in told.assignments.items()} == groups
    assert told.widths == {group: len(units) for group, units in groups.items()}
