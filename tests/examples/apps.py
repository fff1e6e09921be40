"""Apps in two forms, FedAvg's and FedMA's, told apart by a diff, and their runs in this process."""

import re
import sys
import tomllib
from importlib import import_module

from flwr.app import Context, RecordDict

from fedma_flwr.testing import InProcessGrid

MOST_CHANGED_LINES = 7


def changed_lines(diff):
    """How many lines a reader writes, and how many he takes out."""
    lines = [line for line in diff if re.match(r"[+-](?![+-])", line)]
    return sum(line[0] == "+" for line in lines), sum(line[0] == "-" for line in lines)


def apply(diff, text):
    """Apply the hunks of one file, each of which must fit exactly one place."""
    for hunk in "\n".join(diff).split("\n@@\n"):
        lines = hunk.splitlines()
        old = "\n".join(["", *(line[1:] for line in lines if line[:1] != "+"), ""])
        new = "\n".join(["", *(line[1:] for line in lines if line[:1] != "-"), ""])
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def reverse(diff):
    """The diff of the way back."""
    swap = {"+": "-", "-": "+"}
    return [
        line if line[:3] in ("+++", "---") else swap.get(line[:1], line[:1]) + line[1:]
        for line in diff
    ]


def by_file(diff):
    """Hunks by the file that a line ``+++ path`` before them names."""
    files = {}
    for line in diff:
        if line.startswith("+++ "):
            hunks = files.setdefault(line.removeprefix("+++ "), [])
        else:
            hunks.append(line)
    return files


def scores(client_app, module, server_app, config, clients):
    """What an app's `global_evaluate` says after each round, round 0 included."""
    said, evaluate = [], module.global_evaluate

    def listen(server_round, arrays):
        metrics = evaluate(server_round, arrays)
        said.append(dict(metrics))
        return metrics

    module.global_evaluate = listen
    grid = InProcessGrid(client_app, clients, config)
    try:
        server_app(grid, Context(1, 0, {}, RecordDict(), config))
    finally:
        module.global_evaluate = evaluate
    return said


def config_of(folder, **overrides):
    """The config of an app in a folder."""
    app = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["flwr"]
    return {**app["app"]["config"], **{k.replace("_", "-"): v for k, v in overrides.items()}}


def run_folder(folder, package, clients, **overrides):
    """Run the app in a folder; see `scores`."""
    names = [name for name in sys.modules if name.split(".")[0] == package]
    for name in names:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    try:
        client = import_module(f"{package}.client_app")
        server = import_module(f"{package}.server_app")
        return scores(client.app, server, server.app, config_of(folder, **overrides), clients)
    finally:
        sys.path.remove(str(folder))
