"""The mutations of some code: its tokens that could as well be others."""

from __future__ import annotations

import ast
import io
import itertools
import tokenize
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
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
