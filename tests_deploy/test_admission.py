"""Who is let in, and who is not."""

import time

import pytest

from simulations.commands import free_ports

SECONDS = 120.0


@pytest.mark.parametrize("named", [True, False])
def test_a_node_without_a_registered_key_is_refused(two_nodes, named):
    key = two_nodes.make_key("stranger") if named else None
    stranger = two_nodes.make_node(0, key, *free_ports(1))
    stranger.start()
    deadline = time.monotonic() + SECONDS
    while stranger.running and time.monotonic() < deadline:
        time.sleep(0.2)

    assert stranger.exit_code not in (None, 0)
    assert "SuperNode ID" not in stranger.said()
    assert "Exit Code: 305" in stranger.said()
    assert all(node.running for node in two_nodes.nodes)
    listed = two_nodes.commands.ask("supernode", "list")["nodes"]
    assert len(listed) == len(two_nodes.nodes)
