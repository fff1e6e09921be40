"""Which tests cannot fail: one token of the code is changed at a time, to see whether one does.

``python -m benchmarks.mutations --room fedma_flwr/matching --tests tests/matching [--count 60]
[--seed 0] [--timeout 60] [--at gain.py:120 ...] [--list] [-- options of pytest]``

The change is made in a copy of the repository, in a temporary folder; the tests then run up to the
first that fails. A mutation that none of them notices is printed. Whether it makes a difference at
all is for the reader to tell: what costs only time, or decides between equals, survives as well.
"""

from __future__ import annotations

import argparse
import ast
import io
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import tokenize
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
NOT_COPIED = shutil.ignore_patterns(
    ".git", ".venv", "outputs", "shared", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info"
)
SWAPPED = [
    *(("<", "<="), (">", ">="), ("==", "!="), ("+", "-"), ("*", "/"), ("&", "|"), ("and", "or")),
    *(("+=", "-="), ("*=", "/="), ("&=", "|="), ("break", "continue"), ("True", "False")),
    *(("min", "max"), ("minimum", "maximum"), ("argmin", "argmax"), ("any", "all")),
    *(("floor", "ceil"), ("zeros", "ones"), ("zeros_like", "ones_like")),
]
OTHER = {
    **dict(SWAPPED),
    **{other: one for one, other in SWAPPED},
    **{"//": "/", "%": "*", "**": "*", "is": "is not", "in": "not in", "not": ""},
}
TELLING = {"log", "print", "warn"}  # calls by these names only tell something
PASSED, FAILED, TOO_LATE = 0, 1, -1  # pytest's exit status; ours where it did not end in time

Place = tuple[int, int]  # line, from 1, and character, from 0


class Mutation(NamedTuple):
    """One token of a file, and what stands there instead."""

    file: Path
    """Relative to the repository."""
    place: Place
    old: str
    new: str

    def __str__(self) -> str:
        """As ``file:line old -> new``."""
        return f"{self.file}:{self.place[0]} {self.old} -> {self.new or 'nothing'}"

    def apply(self, source: str) -> str:
        """Return the changed source."""
        lines = source.splitlines(keepends=True)
        line, start = self.place
        before, after = lines[line - 1][:start], lines[line - 1][start + len(self.old) :]
        lines[line - 1] = before + self.new + after
        return "".join(lines)


class _Finder(ast.NodeVisitor):
    """Finds the mutations of one file; docstrings, types and texts have none."""

    def __init__(self, file: Path, source: str) -> None:
        self.found: list[Mutation] = []
        self._file, self._lines = file, source.splitlines()
        self._tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
        self.visit(ast.parse(source))
        self.found.sort(key=lambda mutation: mutation.place)

    def _place(self, line: int | None, column: int | None) -> Place:
        # The syntax tree counts bytes, and may know of no place for what it was not read from.
        assert line is not None
        return line, len(self._lines[line - 1].encode()[:column].decode())

    def _start(self, node: ast.expr | ast.stmt) -> Place:
        return self._place(node.lineno, node.col_offset)

    def _end(self, node: ast.expr) -> Place:
        return self._place(node.end_lineno, node.end_col_offset)

    def _add(self, place: Place, old: str, new: str | None = None) -> None:
        new = OTHER.get(old) if new is None else new
        if new is not None:
            self.found.append(Mutation(self._file, place, old, new))

    def _add_between(self, left: ast.expr, right: ast.expr) -> None:
        """Add the operator between two operands; of one that has a "not" it is that."""
        start, end = self._end(left), self._start(right)
        gap = {
            token.string: token.start
            for token in self._tokens
            if start <= token.start < end and token.type in (tokenize.OP, tokenize.NAME)
        }
        operators = [text for text in gap if text in OTHER]
        if operators:
            chosen = "not" if "not" in operators else operators[0]
            self._add(gap[chosen], chosen)

    def _visit_all(self, nodes: Iterable[ast.AST | None]) -> None:
        for node in nodes:
            if node is not None:
                self.visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        operands = [node.left, *node.comparators]
        for left, right in itertools.pairwise(operands):
            self._add_between(left, right)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        for left, right in itertools.pairwise(node.values):
            self._add_between(left, right)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        self._add_between(node.left, node.right)
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._add_between(node.target, node.value)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        sign = {ast.USub: "-", ast.Invert: "~", ast.Not: "not"}.get(type(node.op))
        if sign is not None:
            self._add(self._start(node), sign, "")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self._add(self._start(node), str(node.value))
        elif isinstance(node.value, int | float):
            (line, start), (_, end) = self._start(node), self._end(node)
            self._add((line, start), self._lines[line - 1][start:end], _other_number(node.value))

    def visit_Name(self, node: ast.Name) -> None:
        self._add(self._start(node), node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        line, end = self._end(node)
        self._add((line, end - len(node.attr)), node.attr)
        self.visit(node.value)

    def visit_Break(self, node: ast.Break) -> None:
        self._add(self._start(node), "break")

    def visit_Continue(self, node: ast.Continue) -> None:
        self._add(self._start(node), "continue")

    # What only declares or tells something.

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._visit_all([*node.args.defaults, *node.args.kw_defaults, *node.body])

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._visit_all(node.body)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._visit_all([node.value])

    def visit_keyword(self, node: ast.keyword) -> None:
        if node.arg != "strict":  # of zip
            self.visit(node.value)

    def visit_Call(self, node: ast.Call) -> None:
        if getattr(node.func, "id", None) not in TELLING:
            self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        pass

    def visit_Assert(self, node: ast.Assert) -> None:
        pass

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        pass


def _other_number(value: float) -> str:
    """Return 1 for 0 and 0 for 1; else one more, or twice as much where it is no whole number."""
    if value in (0, 1):
        return repr(type(value)(1 - value))
    return repr(value + 1 if isinstance(value, int) else 2 * value)


def find_mutations(rooms: Sequence[Path]) -> list[Mutation]:
    """Return all mutations of some folders and files, relative to the repository."""
    files = {file for room in rooms for file in ([room] if room.is_file() else room.rglob("*.py"))}
    relative = sorted(file.resolve().relative_to(ROOT) for file in files)
    return [m for file in relative for m in _Finder(file, (ROOT / file).read_text("utf-8")).found]


def choose(mutations: list[Mutation], count: int, seed: int, at: Sequence[str]) -> list[Mutation]:
    """Return those at some places, or so many that the seed picks."""
    if at:
        places = {m: f"{m.file.as_posix()}:{m.place[0]}" for m in mutations}
        return [m for m in mutations if any(f"/{places[m]}".endswith(f"/{place}") for place in at)]
    picked = random.Random(seed).sample(range(len(mutations)), min(count, len(mutations)))
    return [mutations[index] for index in sorted(picked)]


def run_tests(folder: Path, arguments: Sequence[str], timeout: float | None = None) -> int:
    """Run tests up to the first that fails; return pytest's exit status, or TOO_LATE."""
    # No bytecode: a mutation may leave a file's size and its time, in seconds, as they were.
    own = {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *arguments]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={"OMP_NUM_THREADS": "1", **os.environ, **own},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        return TOO_LATE
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # and what the tests have started
            process.wait()


def run_mutations(
    mutations: Sequence[Mutation], arguments: Sequence[str], timeout: float
) -> Counter[int]:
    """Print the survivors as they are found; return how often the tests ended how."""
    results: Counter[int] = Counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "repository"
        shutil.copytree(ROOT, folder, ignore=NOT_COPIED)
        if run_tests(folder, arguments) != PASSED:
            raise SystemExit("benchmarks.mutations: the tests fail, or there are none, as it is")
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
    results = run_mutations(chosen, [*options.tests, *options.pytest], options.timeout)
    killed = results.total() - results[PASSED]
    print(
        f"{killed} of {results.total()} mutations were noticed ({results[TOO_LATE]} by time), "
        f"{results[PASSED]} survived; there are {len(found)}"
    )


if __name__ == "__main__":
    main()
