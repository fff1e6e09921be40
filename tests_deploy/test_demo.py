"""`python -m deploy.demo` takes down what it has started, however it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from simulations import processes

ROOT = Path(__file__).parents[1]
HOMES = ("superlink", "node-0", "node-1", "user")
SECONDS = 120.0


def start_demo(folder, *arguments):
    log = (folder / "demo.log").open("wb")
    return subprocess.Popen(
        [sys.executable, "-m", "deploy.demo", "--output-dir", str(folder), *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def alive(folder):
    found = (processes.groups(f"FLWR_HOME={folder / home}") for home in HOMES)
    return [pid for groups in found for pid in processes.members(groups)]


def test_an_interrupt_in_the_middle_of_a_run_leaves_no_process(tmp_path):
    demo = start_demo(tmp_path, "--num-supernodes", "2")
    deadline = time.monotonic() + SECONDS
    while b"[ROUND 1/" not in (tmp_path / "demo.log").read_bytes():
        assert demo.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert len(alive(tmp_path)) >= 5  # SuperLink, SuperNodes, ServerApp, flwr run

    demo.send_signal(signal.SIGINT)

    assert demo.wait(SECONDS) == 130
    assert alive(tmp_path) == []


def test_a_run_that_fails_is_told_and_leaves_no_process(tmp_path):
    demo = start_demo(tmp_path, "--num-supernodes", "2", "--set", "alpha=-1.0")

    assert demo.wait(SECONDS) == 1
    assert "alpha must be greater than 0" in (tmp_path / "demo.log").read_text(encoding="utf-8")
    assert alive(tmp_path) == []
