"""What `import fedma_flwr` needs and loads."""

import subprocess
import sys
from importlib import resources

import fedma_flwr

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
