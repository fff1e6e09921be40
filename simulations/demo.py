"""FedMA against FedAvg and FedProx on handwritten digits, by `flwr run`, in minutes.

Also what FedAvg cannot do: clients that begin with weights of their own, matched after one round,
beside the same without matching.

Prints one table and writes results.json, curves.png and report.html.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from simulations.commands import Config
from simulations.demo_command import add_set_option, exit_status
from simulations.flower import LocalFlower
from simulations.html_report import REPORT, report_of_folders
from simulations.progress import EXCHANGES, RESULT, Display
from simulations.report import plot, read_run, table, write_results

APP = Path(__file__).resolve().parents[1]
# Every client draws its own weights; variances are calibrated, as in `BBPMAP()`.
OWN: Config = {"initialisation": "own", "local-variance": 0.0, "prior-variance": 0.0}
# What two cores do in some minutes: 45 local epochs of FedMA, 90 of FedAvg and of FedProx.
RUNS: dict[str, Config] = {
    "fedma": {"strategy": "fedma", "num-server-rounds": 3},
    "fedavg": {"strategy": "fedavg", "num-server-rounds": 6},
    "fedprox": {"strategy": "fedprox", "num-server-rounds": 6},
    "own": {"strategy": "fedma", "num-server-rounds": 1, **OWN},
    "own-unmatched": {"strategy": "fedma", "num-server-rounds": 1, **OWN, "matcher": "identity"},
}
CONFIG: Config = {
    "task": "mnist",
    "dataset": "embedded",
    "partition": "dirichlet",
    "alpha": 0.1,
    "local-epochs": 15,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; return the exit status."""
    arguments = _parser().parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)  # so that the SuperLink is stopped on the way out
    return exit_status(partial(_compare, arguments, arguments.output_dir.resolve()))


def _compare(arguments: argparse.Namespace, output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    for name in ("results.json", "curves.png", REPORT):
        (output / name).unlink(missing_ok=True)
    runs = _run_all(arguments, output)
    write_results(runs, output / "results.json")
    plot(runs, output / "curves.png")
    console = Console()
    console.print(table(runs))
    folders = [output / name for name in arguments.strategies]
    lines = [f"Wrote {output}/results.json and curves.png"]
    if report_of_folders(folders, output / REPORT):
        lines += [f"Look at {output / REPORT} in a browser: curves, what they cost, who took part"]
    lines += ["Next: turn an app of your own from FedAvg to FedMA, docs/from_fedavg.md"]
    console.print("\n".join(lines), highlight=False, soft_wrap=True)


def run_configs(
    strategies: Sequence[str], seed: int, overrides: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return each run's config by its name; `overrides` win over the demo's own values."""
    return {name: {**CONFIG, **RUNS[name], "seed": seed, **overrides} for name in strategies}


def _run_all(arguments: argparse.Namespace, output: Path) -> list[dict[str, Any]]:
    configs = run_configs(arguments.strategies, arguments.seed, dict(arguments.set))
    totals = {name: config["num-server-rounds"] for name, config in configs.items()}
    runs = []
    with Display(totals, Console(stderr=True)) as display, LocalFlower() as flower:
        for name, config in configs.items():
            folder = output / name
            folder.mkdir(exist_ok=True)
            (folder / EXCHANGES).unlink(missing_ok=True)
            display.start(name)
            flower.run(
                APP,
                {**config, "output-dir": str(folder)},
                num_supernodes=arguments.num_supernodes,
                client_cpus=arguments.client_cpus,
                client_gpus=arguments.client_gpus,
                log=folder / "run.log",
                result=folder / RESULT,
                while_running=partial(display.update, name, folder),
            )
            display.finish(name)
            runs.append(read_run(folder / RESULT))
    return runs


def _stop(number: int, _frame: object) -> None:
    sys.exit(128 + number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m simulations.demo", description=__doc__)
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/demo"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--strategies", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--num-supernodes", type=int, default=10, help="simulated clients")
    parser.add_argument("--client-cpus", type=int, default=1, help="CPUs for each client")
    parser.add_argument("--client-gpus", type=float, default=0.0, help="GPUs for each client")
    add_set_option(parser, "for all strategies")
    return parser


if __name__ == "__main__":
    sys.exit(main())
