"""One engine for all experiments: settings x seeds in, one JSON line a round out.

Every experiment is ``python -m simulations.NAME --config FILE``. A setting is a method with a run
config and a number of clients. What a run gives is appended to ``rounds.jsonl`` in the output
folder; a run that is already there is not repeated, so that an experiment that was cut short is
continued. Tables (Markdown) and a plot are made from that file.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from simulations import methods
from simulations.flower import LocalFlower
from simulations.html_report import REPORT, report_of_rows
from simulations.methods import APP, LABELS, Config, Entry, InProcess, Run
from simulations.plan import Plan, Setting, check, read_plan
from simulations.report import read_run
from simulations.summary import Row, markdown

ROUNDS, TABLE, PLOT = "rounds.jsonl", "table.md", "plot.png"
ENGINES = ("in-process", "flower")


@dataclass(frozen=True)
class Experiment:
    """An experiment.

    Parameters
    ----------
    name : str
        Its module's name.
    about : str
        What it shows; the title of its tables.
    settings : callable
        Lists the settings of a plan.
    plot : callable
        Draws rows into a file.
    options : mapping
        Its own keys in the file, and their defaults.
    """

    name: str
    about: str
    settings: Callable[[Plan], list[Setting]]
    plot: Callable[[Sequence[Row], Path], None]
    options: Mapping[str, Any] = field(default_factory=dict)


class Runner:
    """Runs settings and keeps what they give.

    Parameters
    ----------
    experiment : str
        Names the rows.
    out : Path
        Folder of ``rounds.jsonl``.
    engine : {"in-process", "flower"}
        Where: on `InProcessGrid`, or by ``flwr run``.
    models : Path, optional
        Folder that keeps the clients' local models; None: a temporary one.
    """

    def __init__(
        self, experiment: str, out: Path, engine: str = ENGINES[0], models: Path | None = None
    ) -> None:
        self.experiment, self.out, self.engine, self.models = experiment, out, engine, models
        out.mkdir(parents=True, exist_ok=True)

    def run(self, settings: Sequence[Setting], seeds: Sequence[int]) -> list[Row]:
        """Run what is not done yet, seed by seed; return all rows of these settings."""
        jobs = [(each, seed) for seed in seeds for each in settings]
        done = {row["run"] for row in read_rows(self.out / ROUNDS)}
        todo = [job for job in jobs if self._key(*job) not in done]
        with (
            tempfile.TemporaryDirectory() as temporary,
            self._flower(bool(todo)) as flower,
            _progress() as progress,
        ):
            bar = progress.add_task(self.experiment, total=len(jobs), state="")
            progress.update(bar, completed=len(jobs) - len(todo))
            run = self._runner(flower, Path(temporary), progress.refresh)
            for each, seed in todo:
                told = f"{each.name} {LABELS[each.method]}, seed {seed}".strip()
                progress.update(bar, state=told)
                last = self._run(each, seed, run, self.models or Path(temporary))[-1]
                progress.advance(bar)
                progress.console.print(f"{told}: accuracy {last['accuracy']:.3f}")
        wanted = [self._key(*job) for job in jobs]
        rows = [row for row in read_rows(self.out / ROUNDS) if row["run"] in wanted]
        return sorted(rows, key=lambda row: (wanted.index(row["run"]), row["round"]))

    def _run(self, each: Setting, seed: int, run: Run, models: Path) -> list[Entry]:
        entries = methods.run_method(each.method, each.resolve(seed), each.clients, run, models)
        about = {
            "experiment": self.experiment,
            "setting": each.name,
            "method": each.method,
            "x": each.x,
            "clients": each.clients,
            "seed": seed,
            "engine": self.engine,
            "split": "validation" if each.resolve(seed)["validation-share"] else "test",
            "run": self._key(each, seed),
            "rounds": len(entries),
            "config": each.config,
        }
        lines = [json.dumps({**about, **entry}) + "\n" for entry in entries]
        with (self.out / ROUNDS).open("a", encoding="utf-8") as file:
            file.write("".join(lines))
        return entries

    def _key(self, each: Setting, seed: int) -> str:
        """A run is known by what was set for it; the defaults of other keys are not compared."""
        what = {"seed": seed, "clients": each.clients, "method": each.method}
        return methods.digest({**each.config, **what, "setting": each.name, "engine": self.engine})

    @contextmanager
    def _flower(self, needed: bool) -> Iterator[LocalFlower | None]:
        if self.engine != "flower" or not needed:
            yield None
            return
        with LocalFlower() as flower:
            yield flower

    def _runner(self, flower: LocalFlower | None, folder: Path, tick: Callable[[], None]) -> Run:
        if flower is None:
            return InProcess(tick)
        return partial(_run_by_flower, flower, folder / "run", tick)


def _run_by_flower(
    flower: LocalFlower, folder: Path, tick: Callable[[], None], config: Config, clients: int
) -> list[Entry]:
    result = folder / "result.json"
    flower.run(
        APP,
        {**config, "output-dir": str(folder)},
        num_supernodes=clients,
        log=folder / "run.log",
        result=result,
        while_running=tick,
    )
    return list(read_run(result)["rounds"])


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    state = TextColumn("{task.fields[state]}")
    return Progress(*columns, state, TimeElapsedColumn(), console=Console(stderr=True))


def read_rows(path: Path) -> list[Row]:
    """Return the rows of complete runs.

    Parameters
    ----------
    path : Path
        ``rounds.jsonl``; it need not be there.

    Returns
    -------
    list of dict
        In the order of the file. A run whose last lines are missing is left out, as is a line
        that was cut short.
    """
    rows: list[Row] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # written when the process was killed
    runs: dict[str, dict[int, Row]] = {}
    for row in rows:
        runs.setdefault(row["run"], {})[row["round"]] = row
    whole = [run for run in runs.values() if len(run) == next(iter(run.values()))["rounds"]]
    return [row for run in whole for row in run.values()]


def main(experiment: Experiment, argv: Sequence[str] | None = None) -> int:
    """Run an experiment from the command line; return the exit status."""
    arguments = _parser(experiment).parse_args(argv)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    torch.set_num_threads(arguments.threads)
    out = (arguments.out or Path("outputs") / experiment.name).resolve()
    try:
        plan = read_plan(arguments.config, experiment.name, experiment.options)
        seeds = arguments.seeds or plan.seeds
        settings = experiment.settings(plan)
        check(settings, seeds)
        models = arguments.local_models and arguments.local_models.resolve()
        rows = Runner(experiment.name, out, arguments.engine, models).run(settings, seeds)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except (ValueError, RuntimeError) as error:
        print(f"{experiment.name}: {error}", file=sys.stderr)
        return 1
    text = markdown(experiment.about, rows, plan.target)
    (out / TABLE).write_text(text, encoding="utf-8")
    experiment.plot(rows, out / PLOT)
    print(text)
    report = f", {REPORT}" if report_of_rows(experiment.about, rows, out / REPORT) else ""
    print(f"Wrote {ROUNDS}, {TABLE}, {PLOT}{report} to {out}")
    return 0


def _parser(experiment: Experiment) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m simulations.{experiment.name}", description=experiment.about
    )
    parser.add_argument("--config", type=Path, required=True, help="TOML; see simulations/configs")
    parser.add_argument("--out", type=Path, help="folder (default: outputs/NAME)")
    parser.add_argument("--seeds", type=int, nargs="+", help="in place of the file's")
    parser.add_argument("--engine", choices=ENGINES, default=ENGINES[0])
    parser.add_argument("--local-models", type=Path, help="folder that keeps local models")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    return parser
