"""A SuperNode whose processes stand still for longer than a stage, and go on."""

import os
import signal

NODES = 2
ROUNDS = 2
STILL, DEADLINE = 1, 45.0


class Standstill:
    """Stops all processes of a node in stage 1 of round 1, until that stage is over."""

    def __init__(self, federation, run):
        self.node, self.run = federation.nodes[STILL], run
        self.said_before = len(self.node.said())  # by the runs before: the node is shared
        self.stopped = []
        self.gone_on = False

    def __call__(self):
        if not self.stopped and "ROUND 1.1]" in self.node.said()[self.said_before :]:
            self.stopped = self.node.processes()
            self.send(signal.SIGSTOP)
        if self.stopped and not self.gone_on and 1 in self.run.stages(1):
            self.send(signal.SIGCONT)
            self.gone_on = True

    def send(self, number):
        for pid in self.stopped:
            os.kill(pid, number)


def test_a_node_that_stands_still_misses_the_stage_and_takes_part_again(two_nodes, new_run):
    run = new_run(two_nodes, "standstill")
    script = Standstill(two_nodes, run)
    try:
        run.start(
            script, stage_timeout=DEADLINE, min_train_nodes=1, min_available_nodes=NODES, epochs=1
        )
    finally:
        if script.stopped and not script.gone_on:
            script.send(signal.SIGCONT)
    assert script.gone_on
    assert [entry["given-up"] for entry in run.rounds()] == [None] * ROUNDS

    stages = [run.stages(number) for number in range(1, ROUNDS + 1)]
    assert set(stages[0][1]["dropped"]) == {f"node-{STILL}"}
    assert stages[0][1]["answered"] == NODES - 1
    later = [*list(stages[0].values())[2:], *stages[1].values()]
    assert later[-1]["answered"] == NODES
    assert any(entry["answered"] == NODES for entry in later)
    assert run.is_finite()
