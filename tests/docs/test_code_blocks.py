"""Python in the documentation: it compiles, names what there is, and runs where it can."""

import ast
import contextlib
import io
import re
from importlib import import_module
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord

from fedma_flwr import FedMA, load_model
from tests.toy import CLIENTS, SPEC, Net, make_app

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


def block_with(page, words):
    """The only Python block of a page that has these words."""
    (code,) = [code for code in blocks(ROOT / "docs" / page) if words in code]
    return code


def test_a_run_on_the_in_process_grid_and_its_model_saved_and_exported(tmp_path, monkeypatch):
    """The blocks of two pages, one after the other, with the smallest app that there is."""
    monkeypatch.chdir(tmp_path)
    names = {
        "ArrayRecord": ArrayRecord,
        "Net": Net,
        "client_app": make_app(),
        "load_model": load_model,
        "strategy": FedMA(spec=SPEC, min_available_nodes=CLIENTS, max_growth=2.0),
        "torch": torch,
    }
    exec(block_with("simulation.md", "InProcessGrid"), names)
    export = block_with("checkpoints.md", "save_file").replace("(2, 1, 28, 28)", "(2, 2)")
    exec(export, names)
    x = torch.randn(2, 2)
    assert torch.equal(names["program"].module()(x), names["model"](x))
    assert names["result"].train_metrics_clientapp
