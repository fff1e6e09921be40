"""A SuperNode that sends bytes of its own beside three honest ones."""

import pytest

from deploy.federation import Federation
from simulations.commands import free_ports

HONEST, ROUNDS, STAGES = 3, 2, 4
HOSTILE = "hostile"


@pytest.fixture
def four_nodes(tmp_path):
    """A SuperLink and three SuperNodes, and a fourth whose client lies."""
    with Federation(tmp_path, HONEST) as federation:
        key = federation.make_key("fourth")
        federation.register(key)
        federation.make_node(0, key, *free_ports(1), client_key=HOSTILE).start()
        yield federation
    assert federation.processes() == []


def test_bytes_that_cannot_be_decoded_cost_their_sender_only(four_nodes, new_run):
    run = new_run(four_nodes, "hostile")
    run.start(min_available_nodes=HONEST + 1, stage_timeout=300.0, epochs=1)

    assert [entry["given-up"] for entry in run.rounds()] == [None] * ROUNDS
    for number in range(1, ROUNDS + 1):
        stages = run.stages(number)
        assert [stages[stage]["answered"] for stage in stages] == [HONEST] * STAGES
        lost = [entry["dropped"] for entry in stages.values()]
        # It is asked once more, and then left alone for the rest of the round.
        assert [set(dropped) for dropped in lost] == [{HOSTILE}, {HOSTILE}, set(), set()]
        assert all("cannot be decoded" in reason for d in lost for reason in d.values())
    assert run.is_finite()
