"""The strategy's own count of bytes against Flower's."""

import pytest

WIDE = 19_600  # inputs: the first layer has 10 MB
WITHIN = 0.02


def test_flower_counts_the_same_bytes(two_nodes, new_run):
    run = new_run(two_nodes, "wide")
    config = {"inputs": WIDE, "num_server_rounds": 1, "groups_per_stage": "all", "epochs": 1}
    listed = run.start(**config, min_available_nodes=2)

    assert len(run.model()) >= 10_000_000
    exchanges, traffic = run.exchanges(), listed["network-traffic"]
    down, up = (sum(entry[key] for entry in exchanges) for key in ("bytes_down", "bytes_up"))
    assert traffic["outbound-bytes"] == pytest.approx(down, rel=WITHIN)
    assert traffic["inbound-bytes"] == pytest.approx(up, rel=WITHIN)
