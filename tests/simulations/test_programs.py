"""Long-running programs, here Python itself: started, stopped, killed, started again."""

import signal

import pytest

from simulations.commands import RunFailedError
from simulations.programs import Program

SECONDS = 60.0
# Says that it is ready once its child, which leads a session of its own, has been started.
PARENT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def program(tmp_path):
    """A program with a child; both are gone afterwards."""
    made = Program(["python", "-c", PARENT], tmp_path / "home")
    yield made
    made.kill()


@pytest.mark.parametrize("end", [Program.stop, Program.kill])
def test_an_end_takes_the_children_along(program, end):
    program.start()
    program.wait_until_it_says("ready", SECONDS)
    assert len(program.processes()) == 2

    end(program)

    assert program.processes() == []
    assert not program.running
    sign = signal.SIGTERM if end is Program.stop else signal.SIGKILL
    assert program.exit_code == -sign


def test_a_program_that_was_started_again_must_say_it_again(program):
    program.start()
    program.wait_until_it_says("ready", SECONDS)
    program.kill()
    first = program.said()
    program.start()
    program.wait_until_it_says("ready", SECONDS)
    assert program.said() == first == "ready\n"
    assert program.log.read_text(encoding="utf-8") == first * 2


def test_a_program_that_ends_before_it_is_ready_is_told_with_its_last_words(tmp_path):
    program = Program(["python", "-c", "print('no such key'); raise SystemExit(5)"], tmp_path)
    program.start()
    with pytest.raises(RunFailedError, match=r"(?s)python has ended.*no such key"):
        program.wait_until_it_says("ready", SECONDS)
    assert program.exit_code == 5


def test_what_is_in_use_is_neither_started_nor_removed(program):
    assert not program.running
    assert program.exit_code is None
    program.start()
    program.wait_until_it_says("ready", SECONDS)
    with pytest.raises(ValueError, match="runs already"):
        program.start()
    with pytest.raises(RunFailedError, match="in use"):
        Program(["python"], program.home).forget()
    program.stop()
    program.forget()
    assert not program.home.exists()
