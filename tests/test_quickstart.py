"""An ordinary Flower app, and the five lines of the README that give it FedMA."""

import re
import shutil
from pathlib import Path

import pytest

from simulations.commands import plain_text
from simulations.flower import LocalFlower

ROOT = Path(__file__).parents[1]
APP = ROOT / "examples" / "quickstart"
TINY = {"num-server-rounds": 1, "local-epochs": 2}
CLIENTS = 2


def readme_diff():
    """The lines of the README's only diff."""
    (diff,) = re.findall(
        r"```diff\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL
    )
    return diff.splitlines()


def apply(diff, app):
    """Apply a unified diff without line numbers; every hunk must fit exactly one place."""
    path, old, new = None, [], []
    for line in [*diff, "@@"]:
        if not line.startswith(("@@", "+++", "---")):
            old += [line[1:]] * (line[:1] != "+")
            new += [line[1:]] * (line[:1] != "-")
            continue
        if old or new:
            text = path.read_text(encoding="utf-8")
            before, after = ("\n".join(["", *lines, ""]) for lines in (old, new))
            assert text.count(before) == 1, before
            path.write_text(text.replace(before, after), encoding="utf-8")
            old, new = [], []
        if line.startswith("+++"):
            path = app / line.removeprefix("+++ ")


def accuracies(log):
    """The global model's accuracy on the server, by round."""
    rounds = plain_text(log).split("ServerApp-side Evaluate Metrics:")[1]
    return [float(value) for value in re.findall(r"'accuracy': '([\d.e+-]+)'", rounds)]


def test_the_readme_changes_five_lines():
    changed = [line for line in readme_diff() if re.match(r"[+-](?![+-])", line)]
    added = [line for line in changed if line.startswith("+")]
    assert len(added) == 5
    assert len(changed) - len(added) <= 5


@pytest.mark.flower
def test_the_app_runs_with_fedavg_and_with_the_readmes_five_lines(tmp_path):
    """By `flwr run`; the accuracy on digits that nobody trains on rises from chance."""
    fedma = tmp_path / "fedma"
    shutil.copytree(APP, fedma)
    apply(readme_diff(), fedma)
    with LocalFlower() as flower:
        for app in (APP, fedma):
            log = tmp_path / "run.log"
            flower.run(app, TINY, num_supernodes=CLIENTS, log=log)
            first, last = accuracies(log)
            assert first < 0.3
            assert last > 0.7
            assert ("FedMA settings" in plain_text(log)) == (app == fedma)
