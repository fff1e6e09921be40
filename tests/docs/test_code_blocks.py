"""Python in the documentation: it compiles, names what there is, and runs where it can."""

import ast
import contextlib
import io
import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("README.md")),
]
EXECUTED = ["matching.md", "plan.md", "structure.md"]
WITH_OUTPUT = {"plan.md": 3, "structure.md": 1}


def blocks(page, language="python"):
    """Code of a page, block by block."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def with_output(page):
    """Code and the text block below it, where there is one."""
    text = page.read_text(encoding="utf-8")
    return re.findall(
        r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", text, re.DOTALL | re.MULTILINE
    )


def unknown_names(code):
    """Names that a block imports from the package, and that it does not have."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fedma_flwr"):
            module = import_module(node.module)
            yield from (a.name for a in node.names if not hasattr(module, a.name))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_compiles_and_imports_what_there_is(page):
    for code in blocks(page):
        compile(code, str(page), "exec")
        assert list(unknown_names(code)) == []


@pytest.mark.parametrize("name", EXECUTED)
def test_python_runs_and_prints_what_the_page_shows(name):
    names, compared = {}, 0
    for code, shown in with_output(ROOT / "docs" / name):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, name, "exec"), names)
        if shown:
            assert printed.getvalue().strip() == shown.strip()
            compared += 1
    assert compared == WITH_OUTPUT.get(name, 0)


def test_names_that_are_not_there_are_found():
    assert list(unknown_names("from fedma_flwr import FedMA, FedNothing")) == ["FedNothing"]


def test_pages_have_code():
    assert sum(len(blocks(page)) for page in PAGES) > 20
