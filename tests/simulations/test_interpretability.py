"""The notebook on single units: as it is committed, and executed in a small setting."""

import base64
import json
import re
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from torch import nn

from simulations.interpretability import activations, correlations, show

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "simulations" / "interpretability.ipynb"
MEGABYTE = 1_000_000


def texts(notebook):
    """What the cells have printed or shown, pictures aside."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            yield output.get("text") or output.get("data", {}).get("text/plain", "")


def numbers(notebook):
    """The last cell's results."""
    return json.loads(list(texts(notebook))[-1])


def check(found):
    """What must hold in any setting that has been trained at all."""
    reordered, accuracy = found["reordered"], found["accuracy"]
    assert found["unchanged"] < 1e-4
    assert reordered["client A, reordered"] == reordered["client A"]
    assert reordered["matched average of both"] == pytest.approx(reordered["client A"], abs=0.002)
    assert reordered["plain average of both"] < reordered["client A"]
    assert accuracy["matched average"] > accuracy["plain average"] + 0.05
    for layer in ("conv1", "conv2"):
        row = found["correlation"][layer]
        assert row["clients, matched"] > row["clients, own order"] + 0.1
        assert row["clients, matched"] < row["clients, best possible"] + 0.05
        assert row["with matched average"] > row["with plain average"]


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_the_committed_notebook_was_executed_from_top_to_bottom(committed):
    code = [cell for cell in committed.cells if cell.cell_type == "code"]
    outputs = [output for cell in code for output in cell.outputs]
    pictures = [o.data["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert {output.output_type for output in outputs} <= {"stream", "execute_result"}
    assert {output.name for output in outputs if output.output_type == "stream"} == {"stdout"}
    assert len(pictures) == 3
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)
    check(numbers(committed))


def test_the_committed_notebook_is_small_and_names_no_machine(committed):
    assert NOTEBOOK.stat().st_size < MEGABYTE
    assert set(committed.metadata) == {"kernelspec", "language_info"}
    assert [cell.metadata for cell in committed.cells] == [{}] * len(committed.cells)
    assert re.findall(r"(?:/[\w.-]+){2,}|[A-Z]:\\", "\n".join(texts(committed))) == []


@pytest.mark.long
def test_the_notebook_runs(committed, tmp_path, monkeypatch):
    monkeypatch.setenv("INTERPRETABILITY_EXAMPLES", "600")
    monkeypatch.setenv("INTERPRETABILITY_EPOCHS", "4")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):  # nothing is left in the user's home
        monkeypatch.setenv(name, str(tmp_path / name))
    fresh = nbformat.from_dict(committed)
    resources = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(fresh, kernel_name="python3", timeout=600, resources=resources).execute()
    found = numbers(fresh)
    assert found != numbers(committed)
    check(found)


def test_correlations_are_those_of_all_pictures_and_places():
    left = torch.tensor([[[1.0, 2.0], [5.0, 5.0]], [[3.0, 4.0], [5.0, 5.0]]])  # (2, 2, 2)
    right = torch.stack([10 - 2 * left[:, 0], torch.tensor([[1.0, -1.0], [-1.0, 1.0]])], dim=1)
    expected = torch.tensor([[-1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    assert torch.allclose(correlations(left, right), expected)


def test_activations_are_those_after_the_relu():
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Flatten())
    model[0].weight.data = torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1)
    images = torch.tensor([[[[2.0, -3.0]]]])
    assert activations(model, "0", images).tolist() == [[[[2.0, 0.0]], [[0.0, 3.0]]]]


def test_pictures_are_pngs():
    rows = {"x: one": [torch.rand(3, 3)] * 2, "x: two": [torch.zeros(3, 3)] * 2}
    for signed in (True, False):
        assert show(rows, ["a", "b"], signed=signed).startswith(b"\x89PNG")
