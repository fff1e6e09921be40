"""Which tests cannot fail: one token of the code is changed at a time, to see whether one does.

``python -m benchmarks.mutations --room fedma_flwr/matching --tests tests/matching [--count 60]
[--seed 0] [--timeout 60] [--at gain.py:120 ...] [--list] [-- options of pytest]``

The change is made in a copy of the repository, in a temporary folder; the tests then run up to the
first that fails. A mutation that none of them notices is printed. Whether it makes a difference at
all is for the reader to tell: what costs only time, or decides between equals, survives as well.
"""

from __future__ import annotations

import argparse
import importlib
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import pytest

from benchmarks.find_mutations import ROOT, Mutation, find_mutations

NOT_COPIED = shutil.ignore_patterns(
    ".git", ".venv", "outputs", "shared", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info"
)
PASSED, FAILED, TOO_LATE = 0, 1, -1  # pytest's exit status; ours where it did not end in time
IMPORTED = "imported.txt"  # where the tests note it


def choose(mutations: list[Mutation], count: int, seed: int, at: Sequence[str]) -> list[Mutation]:
    """Return those at some places, or so many that the seed picks."""
    if at:
        places = {m: f"{m.file.as_posix()}:{m.place[0]}" for m in mutations}
        return [m for m in mutations if any(f"/{places[m]}".endswith(f"/{place}") for place in at)]
    picked = random.Random(seed).sample(range(len(mutations)), min(count, len(mutations)))
    return [mutations[index] for index in sorted(picked)]


def run_tests(folder: Path, arguments: Sequence[str], timeout: float = math.inf) -> int:
    """Run tests in a child, up to the first that fails; return pytest's exit status, or TOO_LATE.

    The child starts with all that this process has imported: that takes longer than most tests.
    """
    child = os.fork()
    if child == 0:
        _be_child(folder, arguments)
    end = time.monotonic() + timeout
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)  # and what the tests have started
            os.waitpid(child, 0)
            return TOO_LATE
        time.sleep(0.02)


def _be_child(folder: Path, arguments: Sequence[str]) -> NoReturn:
    """Run tests on the code in a folder, note what they have imported, and end."""
    status = FAILED
    try:
        os.setsid()
        os.chdir(folder)
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
        os.environ["PYTHONPATH"] = sys.path[0] = str(folder)
        for name in _modules_under(ROOT):
            del sys.modules[name]
        status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *arguments])
        others = sys.modules.keys() - _modules_under(folder)
        (folder / IMPORTED).write_text("\n".join(others), "utf-8")
    finally:
        os._exit(status)


def _modules_under(folder: Path) -> set[str]:
    """Return the names of the modules in a folder, but of those in its virtual environment."""
    names = set()
    for name, module in sys.modules.items():
        file = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", [])), "")
        if Path(file).is_relative_to(folder) and not Path(file).is_relative_to(sys.prefix):
            names.add(name)
    return names - {"__main__"}


def import_again(names: Iterable[str]) -> None:
    """Import modules, as far as that works."""
    for name in sorted(names):
        with suppress(Exception):
            importlib.import_module(name)


def run_mutations(
    mutations: Sequence[Mutation], arguments: Sequence[str], timeout: float
) -> Counter[int]:
    """Print the survivors as they are found; return how often the tests ended how."""
    results: Counter[int] = Counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve() / "repository"
        shutil.copytree(ROOT, folder, ignore=NOT_COPIED)
        if run_tests(folder, arguments) != PASSED:
            raise SystemExit("benchmarks.mutations: the tests fail, or there are none, as it is")
        import_again((folder / IMPORTED).read_text("utf-8").split())
        for mutation in mutations:
            file = folder / mutation.file
            source = file.read_text("utf-8")
            file.write_text(mutation.apply(source), "utf-8")
            status = run_tests(folder, arguments, timeout)
            file.write_text(source, "utf-8")
            results[status] += 1
            if status == PASSED:
                print(mutation, f"    {source.splitlines()[mutation.place[0] - 1]}", sep="\n")
                sys.stdout.flush()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description="Mutations of the code that no test notices.")
    parser.add_argument("--room", type=Path, nargs="+", required=True, help="folders, files")
    parser.add_argument("--tests", nargs="+", required=True, help="folders, files, tests")
    parser.add_argument("--count", type=int, default=60, help="how many (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="which ones (default: 0)")
    parser.add_argument("--timeout", type=float, default=60, help="seconds for one (default: 60)")
    parser.add_argument("--at", nargs="+", default=[], help="only those at FILE:LINE")
    parser.add_argument("--list", action="store_true", help="only say which")
    parser.add_argument("pytest", nargs="*", help="after --: options of pytest")
    options = parser.parse_args()
    found = find_mutations(options.room)
    chosen = choose(found, options.count, options.seed, options.at)
    if options.list:
        print(*chosen, sep="\n")
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # A mutation may leave a file's size as it was, and its time, which counts seconds.
    os.environ["PYTHONDONTWRITEBYTECODE"], sys.dont_write_bytecode = "1", True
    results = run_mutations(chosen, [*options.tests, *options.pytest], options.timeout)
    killed = results.total() - results[PASSED]
    print(
        f"{killed} of {results.total()} mutations were noticed ({results[TOO_LATE]} by time), "
        f"{results[PASSED]} survived; there are {len(found)}"
    )


if __name__ == "__main__":
    main()
