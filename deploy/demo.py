"""FedMA on real Flower processes, with TLS and authenticated nodes, on this machine.

Makes certificates and keys, starts a SuperLink and SuperNodes, runs the shipped app by `flwr run`,
shows its log and its result, and takes everything down again.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from deploy.federation import Federation
from simulations.commands import Config, plain_text
from simulations.demo_command import add_set_option, exit_status
from simulations.html_report import REPORT
from simulations.progress import EXCHANGES, MEGABYTE, RESULT
from simulations.report import read_run, table

APP = Path(__file__).resolve().parents[1]
CONFIG: Config = {  # minutes on two cores: every message starts a process that imports torch
    "task": "mnist",
    "dataset": "embedded",
    "partition": "homogeneous",  # the Dirichlet partition costs each of these processes seconds
    "num-server-rounds": 2,
    "local-epochs": 1,
    "retrain-epochs": 1,
}
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; return the exit status."""
    arguments = _parser().parse_args(argv)
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    return exit_status(partial(_run, arguments))


def _run(arguments: argparse.Namespace) -> None:
    folder = arguments.output_dir.resolve()
    result = folder / "run"
    config = {
        **CONFIG,
        "min-available-nodes": arguments.num_supernodes,
        **dict(arguments.set),
        "output-dir": str(result),
    }
    log = folder / "run.log"
    follower = Follower(log)
    _tell("Making certificates and keys, starting a SuperLink and the SuperNodes")
    with Federation(folder, arguments.num_supernodes) as federation:
        _tell(f"https://{federation.address}, {arguments.num_supernodes} authenticated SuperNodes")
        run = federation.run(
            APP, config, log=log, result=result / RESULT, while_running=follower.show
        )
        follower.show()
    _tell("Everything is stopped")
    _show_result(result, run)
    _tell(f"Wrote {folder}; look at {result / REPORT} in a browser")


class Follower:
    """Prints what a log has new.

    Parameters
    ----------
    log : Path
        The log; one of an earlier run is removed.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self._shown = 0
        log.unlink(missing_ok=True)

    def show(self) -> None:
        """Print the whole lines that have come since the last call."""
        if not self._log.exists():
            return
        lines = plain_text(self._log).splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):
            lines.pop()
        sys.stdout.writelines(lines[self._shown :])
        sys.stdout.flush()
        self._shown = len(lines)


def _show_result(folder: Path, run: dict[str, Any]) -> None:
    console = Console()
    console.print(table([read_run(folder / RESULT)]))
    lines = (folder / EXCHANGES).read_text(encoding="utf-8").splitlines()
    exchanges = [json.loads(line) for line in lines]
    for entry in exchanges:
        if entry["dropped"]:
            _tell(f"round {entry['round']}, {entry['name']}: dropped {entry['dropped']}")
    counted = sum(entry["bytes_down"] + entry["bytes_up"] for entry in exchanges) / MEGABYTE
    network = run["network-traffic"]["total-bytes"] / MEGABYTE
    _tell(f"{counted:.1f} MB in records; Flower counted {network:.1f} MB")


def _tell(text: str) -> None:
    print(text, flush=True)


def _interrupt(_number: int, _frame: object) -> None:
    for number in SIGNALS:  # once is enough: the rest is taking things down
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deploy.demo", description=__doc__)
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/deploy"))
    parser.add_argument("--num-supernodes", type=int, default=3, help="SuperNodes on this machine")
    add_set_option(parser, "of the app")
    return parser


if __name__ == "__main__":
    sys.exit(main())
