"""SuperNodes that die or leave in the middle of a round, and come back."""

from concurrent.futures import ThreadPoolExecutor

from simulations.commands import free_ports

STAGES = ("local", "retrain", "retrain", "head")  # LeNet's, and those of the app's network
NODES = 6
ROUNDS = 2
LEAVES = 4  # the node that is stopped in order in stage 1; its client gets a new node
FORGETS = 5  # the node that does all of round 1 and is started anew before round 2
ON_A_PAR = 0.05
FORSAKEN = 0.2  # what round 1 may be worse: one client of six is left in its head stage


class Script:
    """Kills node k in stage k of round 1; for round 2 all clients are back."""

    def __init__(self, federation, run):
        self.federation, self.nodes, self.run = federation, federation.nodes, run
        self.killed, self.leaving, self.back = set(), None, False
        self.pool = ThreadPoolExecutor(1)

    def __call__(self):
        for stage in range(len(STAGES)):
            if stage not in self.killed and self.works_on(stage, stage):
                self.nodes[stage].kill()
                assert self.nodes[stage].processes() == []
                self.killed.add(stage)
        if self.leaving is None and self.works_on(LEAVES, 1):
            # It takes seconds, in which the node that is to be killed could answer.
            self.leaving = self.pool.submit(self.stop, LEAVES)
        if not self.back and self.run.rounds():
            # Round 2 waits for those that died, so the node that stayed is idle.
            self.stop(FORGETS)
            self.nodes[FORGETS].start()
            self.leaving.result()
            self.replace(LEAVES)
            self.back = True
        if self.back:
            self.bring_back()

    def works_on(self, node, stage):
        """Whether a node has a stage's message: its log has Flower's group id, round.stage."""
        return f"ROUND 1.{stage}]" in self.nodes[node].said()

    def stop(self, node):
        self.nodes[node].stop()
        assert self.nodes[node].processes() == []

    def replace(self, node):
        """The client comes back with another node key, and so under another node id."""
        key = self.federation.make_key("replacement")
        self.federation.register(key)
        ports = free_ports(1)
        self.federation.make_node(node, key, *ports, client_key=f"node-{node}").start()

    def bring_back(self):
        """The SuperLink refuses a killed node for a while; it ends then, and is started again."""
        for stage in self.killed:
            if not self.nodes[stage].running:
                self.nodes[stage].start()


def test_nodes_die_in_every_stage_and_are_back_in_the_next_round(six_nodes, undisturbed, new_run):
    run = new_run(six_nodes, "faults")
    config = {"min_available_nodes": NODES, "min_train_nodes": 1, "stage_timeout": 600.0}
    run.start(Script(six_nodes, run), **config)

    first, second = run.stages(1), run.stages(2)
    assert [first[stage]["name"] for stage in first] == list(STAGES)
    lost = {stage: set(entry["dropped"]) for stage, entry in first.items()}
    leaves = f"node-{LEAVES}"  # each is asked once more: it might be back
    assert lost == {
        0: {"node-0"},
        1: {"node-0", "node-1", leaves},
        2: {"node-1", leaves, "node-2"},
        3: {"node-2", "node-3"},
    }
    reasons = [reason for entry in first.values() for reason in entry["dropped"].values()]
    assert all(reason.startswith(("error 5", "error 3")) for reason in reasons), reasons
    assert [second[stage]["answered"] for stage in second] == [NODES] * len(STAGES)
    assert second[0]["resent"] == [f"node-{FORGETS}"]
    hellos = [entry for entry in run.exchanges() if entry["name"] == "hello"]
    assert [(e["round"], e["cohort"], e["answered"]) for e in hellos] == [
        (1, NODES, NODES),
        (2, 1, 1),
    ]
    assert [entry["given-up"] for entry in run.rounds()] == [None] * ROUNDS
    assert run.is_finite()
    allowed = (FORSAKEN, ON_A_PAR)
    for disturbed, usual, worse in zip(run.rounds(), undisturbed.rounds(), allowed, strict=True):
        assert disturbed["accuracy"] > usual["accuracy"] - worse
