"""Apps in two forms, FedAvg's and FedMA's, told apart by a diff, and their runs in this process."""

import re
import shutil
import sys
import tomllib
from contextlib import contextmanager
from importlib import import_module
from unittest.mock import patch

from flwr.app import Context, RecordDict
from flwr.serverapp.strategy import Strategy

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


def readme_diff(folder):
    """The only diff of an example's README: its lines by file."""
    readme = (folder / "README.md").read_text(encoding="utf-8")
    (diff,) = re.findall(r"```diff\n(.*?)```", readme, re.DOTALL)
    files = {}
    for line in diff.splitlines():
        if line.startswith("+++ "):
            hunks = files.setdefault(line.removeprefix("+++ "), [])
        else:
            hunks.append(line)
    return files


def copy_with_fedavg(folder, copy):
    """Copy an example, and take its README's lines back."""
    shutil.copytree(folder, copy)
    swap = {"+": "-", "-": "+"}
    for name, lines in readme_diff(folder).items():
        file = copy / name
        back = [swap.get(line[0], line[0]) + line[1:] for line in lines]
        file.write_text(apply(back, file.read_text(encoding="utf-8")), encoding="utf-8")


def run_server(client_app, server_app, config, clients):
    """Run both apps in this process."""
    grid = InProcessGrid(client_app, clients, config)
    server_app(grid, Context(1, 0, {}, RecordDict(), config))


def scores(module, config, clients):
    """What `global_evaluate` of an app in one module says after each round, from round 0 on."""
    said, evaluate = [], module.global_evaluate

    def listen(server_round, arrays):
        metrics = evaluate(server_round, arrays)
        said.append(metrics["score"])
        return metrics

    module.global_evaluate = listen
    run_server(module.app, module.server, config, clients)
    return said


def run_folder(folder, package, clients, **overrides):
    """Run the app in a folder; the accuracies after each round, as the server has them."""
    settings = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    overrides = {key.replace("_", "-"): value for key, value in overrides.items()}
    config = {**settings["tool"]["flwr"]["app"]["config"], **overrides}
    results, start = [], Strategy.start

    def keep(*args, **kwargs):
        results.append(start(*args, **kwargs))
        return results[-1]

    with importable(folder, package), patch.object(Strategy, "start", keep):
        client = import_module(f"{package}.client_app")
        server = import_module(f"{package}.server_app")
        run_server(client.app, server.app, config, clients)
    said = results[0].evaluate_metrics_serverapp or results[0].evaluate_metrics_clientapp
    return [said[number]["accuracy"] for number in sorted(said)]


@contextmanager
def importable(folder, package):
    """Import a package from a folder, whatever had its name before."""
    forget(package)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        forget(package)


def forget(package):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        del sys.modules[name]
