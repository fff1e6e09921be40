"""The package's rooms: which imports which, what stays small, what a name means."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "fedma_flwr"
# A room may import the rooms before it, and itself. The order is that of docs/architecture.md.
ROOMS = [
    "matching",
    "structure",
    "averaging",
    "report",
    "wire",
    "reading",
    "unit_records",
    "protocol",
    "class_labels",
    "client_bounds",
    "incompatible_mods",
    "client_statistics",
    "client_heads",
    "client_losses",
    "client_moment_sums",
    "client_narrower",
    "client_passes",
    "client_privacy",
    "client_moments",
    "client_private_moments",
    "model_sources",
    "settled_values",
    "client_config_reads",
    "client",
    "client_units",
    "client_state",
    "client_replies",
    "mod",
    "server",
    "exchange_loggers",
    "strategy",
    "baselines",
    "tasks",
    "strategy_from_config",
    "client_app",
    "server_app",
    "testing",
]
WITHOUT_FLOWER = ["matching", "structure", "averaging", "report"]
LONGEST_FILE, LONGEST_FUNCTION = 300, 30
FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(file):
    """A file's module name, without the package's: "averaging.settle", "" for the package."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file):
    """Modules of the package that a file imports when it is imported itself, as `name_of` names.

    Imports inside functions do not count; those that only a type checker sees do.
    """
    module = name_of(file)
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    statements = ast.parse(file.read_text(encoding="utf-8")).body
    for node in [n for s in statements for n in (s.body if isinstance(s, ast.If) else [s])]:
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.startswith("fedma_flwr")}
        elif isinstance(node, ast.ImportFrom):
            start = node.module or ""
            if node.level:
                parts = ["fedma_flwr", *filter(None, package.split("."))]
                parts = parts[: len(parts) - node.level + 1]
                start = ".".join([*parts, *filter(None, [start])])
            if start.split(".")[0] == "fedma_flwr":
                for alias in node.names:  # a module, or a name in one
                    full = f"{start}.{alias.name}"
                    found.add(full if is_module(full) else start)
    return {name.removeprefix("fedma_flwr").lstrip(".") for name in found}


def is_module(name):
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def room(module):
    return module.split(".")[0]


def test_every_file_is_in_a_room():
    assert {room(name_of(file)) for file in FILES} - {""} == set(ROOMS)


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_point_one_way(file):
    own = name_of(file)
    if not own:
        pytest.skip("the package itself imports on demand")
    later = ROOMS[ROOMS.index(room(own)) + 1 :]

    assert not {name for name in imports(file) if room(name) in later}


def test_no_import_goes_round_in_a_circle():
    graph = {name_of(file): imports(file) - {name_of(file)} for file in FILES}
    packages = {name_of(file) for file in FILES if file.name == "__init__.py"}
    done, walked = set(), []

    def visit(module):
        assert module not in walked, f"circle: {[*walked[walked.index(module) :], module]}"
        if module in done:
            return
        walked.append(module)
        for other in sorted(graph.get(module, ())):
            # A module of a package that takes a sibling by its full name does not need the package.
            if not (other in packages and module.startswith(f"{other}.")):
                visit(other)
        walked.pop()
        done.add(module)

    for module in graph:
        visit(module)


@pytest.mark.parametrize("name", WITHOUT_FLOWER)
def test_arithmetic_knows_no_flower(name):
    code = f"import sys; sys.modules['flwr'] = None; import fedma_flwr.{name}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)

    assert result.returncode == 0, result.stderr.decode()
    files = [file for file in FILES if room(name_of(file)) == name]
    assert not [
        file for file in files if "import flwr" in (text := file.read_text()) or "from flwr" in text
    ]


def test_files_are_short():
    lines = {name_of(file): len(file.read_text(encoding="utf-8").splitlines()) for file in FILES}

    assert not {name: count for name, count in lines.items() if count > LONGEST_FILE}


def code_lines(function):
    """Lines of a function's signature and body, without its docstring."""
    body = function.body
    docstring = ast.get_docstring(function, clean=False)
    length = function.end_lineno - function.lineno + 1
    return length - (body[0].end_lineno - body[0].lineno + 1 if docstring else 0)


def test_functions_are_short_or_say_why_not():
    long = {
        f"{name_of(file)}.{node.name}": code_lines(node)
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and code_lines(node) > LONGEST_FUNCTION
        if "Long because" not in (ast.get_docstring(node) or "")
    }

    assert not long


@pytest.mark.parametrize(
    "name", ["fedma_flwr", *(f"fedma_flwr.{r}" for r in ROOMS if (PACKAGE / r).is_dir())]
)
def test_no_name_is_both_a_module_and_what_its_package_exports(name):
    package = import_module(name)
    folder = Path(package.__file__).parent
    modules = {path.stem for path in folder.iterdir() if path.suffix == ".py" or path.is_dir()}

    assert not modules & set(getattr(package, "__all__", ()))
