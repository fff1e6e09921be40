"""A SuperLink that dies between two rounds, and the run that goes on where it was."""

import pytest

from simulations.commands import RunFailedError


class Killer:
    """Kills the SuperLink, and the ServerApp with it, once a checkpoint is there."""

    def __init__(self, federation, checkpoint):
        self.superlink, self.checkpoint = federation.superlink, checkpoint
        self.start = federation.start_superlink
        self.killed = False

    def __call__(self):
        if not self.killed and self.checkpoint.exists():
            self.superlink.kill()
            assert self.superlink.processes() == []
            self.killed = True
            self.start()


def test_a_run_goes_on_bit_for_bit_after_the_superlink_was_killed(two_nodes, undisturbed, new_run):
    parts = new_run(two_nodes, "parts")
    checkpoints = two_nodes.folder / "checkpoints"
    config = {"min_available_nodes": 2, "checkpoint_dir": str(checkpoints)}
    killer = Killer(two_nodes, checkpoints / "round-000001.safetensors")
    with pytest.raises(RunFailedError):
        parts.start(killer, **config)
    assert killer.killed
    assert len(parts.rounds()) < len(undisturbed.rounds())

    parts.start(**config, resume=True)

    assert parts.is_finite()
    assert parts.model() == undisturbed.model()
    assert comparable(parts) == comparable(undisturbed)


def comparable(run):
    """What does not depend on time, nor on what was sent again."""
    same = ("round", "given-up", "accuracy", "loss", "client_epochs", "growth")
    return [{key: entry[key] for key in same} for entry in run.rounds()]
