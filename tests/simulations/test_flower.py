"""Starting Flower on this machine: config, logs, and a real run of this repository."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from simulations import processes
from simulations.commands import RunFailedError, last_lines, to_toml
from simulations.flower import LocalFlower, federation_config
from simulations.report import read_run

APP = Path(__file__).resolve().parents[2]
SLEEPER = [sys.executable, "-c", "import sys; sys.stdin.read()"]


def test_config_survives_whatever_its_values_hold():
    config = {
        "output-dir": "/home/a user/out=1",
        "quoted": "both \" and ' and \\ and ünï",
        "lines": "one\ntwo",
        "empty": "",
        "flag": False,
        "rounds": 3,
        "lr": 1e-05,
        "alpha": 0.1,
    }

    read = tomllib.loads(to_toml(config))

    assert read == config
    assert {key: type(value) for key, value in read.items()} == {
        key: type(value) for key, value in config.items()
    }


@pytest.mark.parametrize(
    ("value", "message"),
    [(float("nan"), "alpha must be finite"), ([1], "alpha must be a string, number or bool")],
)
def test_config_refuses_what_flower_cannot_take(value, message):
    with pytest.raises(ValueError, match=message):
        to_toml({"alpha": value})


def test_federation_config_starts_no_more_workers_than_clients(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    wide = federation_config(10, 2, 0.5)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    narrow = federation_config(10, 1, 0.0)

    resources = "client-resources-num-cpus={} client-resources-num-gpus={}"
    assert wide == f"num-supernodes=10 {resources.format(2, 0.5)} init-args-num-cpus=20"
    assert narrow == f"num-supernodes=10 {resources.format(1, 0.0)}"


def test_last_lines_are_plain_and_not_empty(tmp_path):
    log = tmp_path / "run.log"
    log.write_text(
        "\x1b[92mINFO \x1b[0m:      round 1\n\n\x1b[92mINFO \x1b[0m:      \nValueError: no\n"
    )

    assert last_lines(log) == "INFO :      round 1\nValueError: no"


def test_stop_ends_what_the_process_started_however_far_it_detached():
    # The inner process leads a session of its own, as Flower's programs do.
    inner = f"import subprocess; subprocess.Popen({SLEEPER!r}, start_new_session=True)"
    script = f"import subprocess, sys; {inner}; print('started', flush=True); sys.stdin.read()"
    marker = f"FEDMA_TEST_MARKER={os.getpid()}"
    leader = subprocess.Popen(
        [sys.executable, "-c", script],
        env=os.environ | {"FEDMA_TEST_MARKER": str(os.getpid())},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert leader.stdout.readline() == b"started\n"
    started = processes.groups(marker)
    assert len(processes.members(started)) == 2

    processes.stop(leader, marker)

    assert processes.members(started) == []
    assert leader.returncode is not None
    leader.stdin.close()
    leader.stdout.close()


TINY = {
    "dataset": "embedded",
    "partition": "homogeneous",
    "num-server-rounds": 1,
    "local-epochs": 1,
    "retrain-epochs": 1,
    "seed": 0,
}


@pytest.mark.flower
@pytest.mark.long
def test_flower_runs_this_repository_and_leaves_no_process(tmp_path):
    runs = {}
    with LocalFlower() as flower:
        for strategy in ("fedma", "fedavg"):
            folder = tmp_path / strategy
            folder.mkdir()
            flower.run(
                APP,
                {**TINY, "strategy": strategy, "output-dir": str(folder)},
                num_supernodes=3,
                log=folder / "run.log",
                result=folder / "result.json",
            )
            runs[strategy] = read_run(folder / "result.json")
        with pytest.raises(RunFailedError, match="alpha must be greater than 0"):
            flower.run(APP, {**TINY, "alpha": -1.0}, num_supernodes=3, log=tmp_path / "refused.log")
        started = processes.groups(flower.marker)
        assert processes.members(started)

    assert processes.members(started) == []
    assert not flower.home.exists()
    fedma, fedavg = (runs[name]["rounds"][-1] for name in ("fedma", "fedavg"))
    assert fedma["exchanges"] == 2
    assert fedavg["exchanges"] == 1
    assert fedma["accuracy"] > 0.5
    assert set(fedma["widths"]) == {"conv1", "conv2", "fc1"}
