"""The tutorial: as it is committed, and executed."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "tutorial" / "matching_by_hand.ipynb"


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(NOTEBOOK, as_version=4)


def printed(notebook):
    """What each cell of code has printed."""
    return ["".join(o.get("text", "") for o in c.get("outputs", [])) for c in code(notebook)]


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def check(notebook):
    """What the text says of the figures."""
    found = json.loads(printed(notebook)[-1])
    assert found["recovered"]
    assert found["matched"] > max(*found["clients"], found["plain"]) + 0.05
    assert found["matched, solved"] > found["matched"]
    assert found["matched, solved"] > found["plain, solved"]


def test_what_is_committed_was_executed(committed):
    cells = code(committed)
    outputs = [output for cell in cells for output in cell.outputs]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert {output.get("name") for output in outputs} == {"stdout"}
    assert NOTEBOOK.stat().st_size < 50_000
    assert re.findall(r"(?:/[\w.-]+){2,}|[A-Z]:\\", "\n".join(printed(committed))) == []
    check(committed)


def test_the_tutorial_runs(committed, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):  # nothing is left in the user's home
        monkeypatch.setenv(name, str(tmp_path / name))
    fresh = nbformat.from_dict(committed)
    resources = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(fresh, kernel_name="python3", timeout=300, resources=resources).execute()
    check(fresh)
    assert printed(fresh)[1:3] == printed(committed)[1:3]  # the spec, and the permutation
