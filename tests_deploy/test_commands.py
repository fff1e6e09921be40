"""The Compose file and the guide name only options that Flower's programs have."""

import re
import shlex
import subprocess
from functools import cache
from pathlib import Path

import pytest
import yaml

from simulations.commands import PROGRAMS, environment

ROOT = Path(__file__).parents[1]
SUBCOMMANDS = {("flwr", "supernode"): 3, ("flwr",): 2}  # words that name a command


@cache
def help_of(command):
    """What a command says about itself, words cut by tables or not."""
    done = subprocess.run(
        [str(PROGRAMS / command[0]), *command[1:], "--help"],
        env=environment(Path.home() / ".flwr") | {"COLUMNS": "200"},
        capture_output=True,
        check=True,
    )
    return re.sub(r"\x1b\[[0-9;]*m", "", done.stdout.decode())


def unknown_options(words):
    """The options of a command line that its program's help does not name."""
    named = next((count for head, count in SUBCOMMANDS.items() if words[: len(head)] == head), 1)
    known = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", help_of(words[:named])))
    options = {word for word in words[named:] if re.fullmatch(r"--?[a-z][a-z-]*", word)}
    return sorted(options - known)


def compose():
    return yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))


def guide_commands():
    """Command lines of Flower's in the guide's shell blocks."""
    text = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    split = [tuple(shlex.split(line, comments=True)) for line in lines]
    return [words for words in split if words and words[0].startswith(("flwr", "flower-"))]


def test_compose_has_the_two_services_of_the_topology():
    services = compose()["services"]
    programs = {name: service["command"][0] for name, service in services.items()}
    assert programs == {"superlink": "flower-superlink", "supernode": "flower-supernode"}
    assert {"--enable-supernode-auth", "--ssl-keyfile"} <= set(services["superlink"]["command"])
    assert "--insecure" not in str(services)


@pytest.mark.parametrize("name", ["superlink", "supernode"])
def test_composes_command_lines_have_options_that_flower_knows(name):
    command = tuple(compose()["services"][name]["command"])
    assert len([word for word in command if word.startswith("--")]) >= 5
    assert unknown_options(command) == []


@pytest.mark.parametrize("name", ["superlink", "supernode"])
def test_compose_mounts_every_file_that_it_names(name):
    service = compose()["services"][name]
    mounted = [volume.removesuffix(":ro").rpartition(":")[2] for volume in service["volumes"]]
    files = [word for word in service["command"] if word.startswith("/")]
    assert len(files) >= 2
    assert [f for f in files if not f.startswith(tuple(mounted))] == []


def test_each_of_composes_variables_has_a_default():
    text = (ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8")
    variables = re.findall(r"\$\{[^}]*\}", text)
    assert "${FEDMA_SUPERLINK:-superlink:8443}" in variables
    assert [name for name in variables if not re.fullmatch(r"\$\{[A-Z_]+:-[^}]+\}", name)] == []


def test_the_guides_command_lines_have_options_that_flower_knows():
    commands = guide_commands()
    assert {"flwr", "flower-supernode"} <= {words[0] for words in commands}
    assert [(words, unknown_options(words)) for words in commands if unknown_options(words)] == []


def test_an_option_that_flower_does_not_know_is_found():
    assert unknown_options(("flower-supernode", "--superlink", "x", "--grpc")) == ["--grpc"]


def test_the_image_is_made_of_what_is_there():
    lines = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert "fedma_flwr" in copied
    assert [name for name in copied if not (ROOT / name).exists()] == []
