"""What `import fedma_flwr` needs and loads."""

import io
import subprocess
import sys
import tomllib
import zipfile
from importlib import resources
from pathlib import Path

import yaml
from flwr.cli.build import build_fab_from_disk

import fedma_flwr

ROOT = Path(__file__).parents[1]
HEAVY = ["ray", "torchvision", "mlxtend", "flwr_datasets", "datasets", "matplotlib", "rich.live"]


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_import_works_without_extras_and_loads_no_data_set():
    code = f"""
import sys
for name in {HEAVY!r}:
    sys.modules[name] = None  # importing it raises ImportError
import fedma_flwr
for name in fedma_flwr.__all__:
    getattr(fedma_flwr, name)
loaded = [name for name in {HEAVY!r} if sys.modules.get(name) is not None]
assert not loaded, loaded
assert set(fedma_flwr.__all__) >= {{"FedMA", "FedAvg", "FedProx", "fedma_mod", "load_model",
                                   "Stage", "proximal_term", "class_counts"}}
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr


def test_what_a_client_imports_loads_no_solver_and_no_strategy():
    """Flower starts a process for every message, so that each import is paid each time."""
    result = run_python(
        "import sys; from fedma_flwr import fedma_mod, load_model, head_moments\n"
        "loaded = {'scipy', 'flwr_datasets', 'fedma_flwr.strategy'} & sys.modules.keys()\n"
        "assert not loaded, loaded"
    )
    assert result.returncode == 0, result.stderr


def test_matching_and_structure_know_no_flower():
    result = run_python(
        "import sys; sys.modules['flwr'] = None; import fedma_flwr.matching, fedma_flwr.structure"
    )
    assert result.returncode == 0, result.stderr


def test_dir_shows_the_public_names_and_each_is_there():
    assert dir(fedma_flwr) == sorted(fedma_flwr.__all__)
    assert all(getattr(fedma_flwr, name).__name__ == name for name in dir(fedma_flwr))


def test_type_checkers_are_told_that_the_package_has_types():
    assert resources.files("fedma_flwr").joinpath("py.typed").is_file()


def test_flower_takes_every_module_along():
    """Its app bundle leaves out what it takes for tests, such as ``*_test.py``."""
    with zipfile.ZipFile(io.BytesIO(build_fab_from_disk(ROOT))) as bundle:
        taken = set(bundle.namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "fedma_flwr").rglob("*.py")}
    assert modules - taken == set()


def test_one_version_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    if not fedma_flwr.__version__.startswith("0+"):  # run from its source, not installed
        assert fedma_flwr.__version__ == project["version"]


def test_before_a_commit_the_linters_of_make_test_run():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    entries = [hook["entry"] for repo in hooks["repos"] for hook in repo["hooks"]]
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").split("\ntest:")[1].split("\n\n")[0]
    for tool in ("ruff check", "ruff format", "mypy"):
        assert f"$(BIN)/python -m {tool}" in recipe
        assert [e for e in entries if e.startswith(f".venv/bin/python -m {tool}")]


def test_files_that_the_package_names_for_readers_are_there():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (ROOT / project["readme"]).is_file()
    assert {"Paper", "Flower"} <= project["urls"].keys()
    assert "Typing :: Typed" in project["classifiers"]
    assert any(
        "[simulation,lapx,examples,docs]" in e for e in project["optional-dependencies"]["dev"]
    )
