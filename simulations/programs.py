"""Flower's long-running programs: each in a home of its own, by which all it starts is found.

`StoppedAtTheEnd` is for what starts several of them in a ``with`` block.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from simulations import processes
from simulations.commands import RunFailedError, environment, last_lines, plain_text, popen

POLL_SECONDS = 0.2


class Program:
    """A SuperLink or a SuperNode that can be started, stopped, killed and started again.

    Parameters
    ----------
    command : sequence of str
        The program of Flower's and its arguments.
    home : Path
        Its FLWR_HOME. No other program may have the same: it marks this one's processes.
    variables : mapping, optional
        More of its environment.
    """

    def __init__(
        self, command: Sequence[str], home: Path, variables: Mapping[str, str] | None = None
    ) -> None:
        self.command = list(command)
        self.home = home
        self.environment = environment(home) | dict(variables or {})
        self.log = home / f"{command[0]}.log"
        self.marker = f"FLWR_HOME={home}"
        self._said = 0  # bytes of the log that an earlier start has written
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> subprocess.Popen[bytes]:
        """Start it; its log goes on where an earlier one ended.

        Raises
        ------
        ValueError
            If it runs already.
        """
        if self.running:
            raise ValueError(f"{self.command[0]} of {self.home} runs already")
        self.home.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as file:
            self._said = file.tell()
            self._process = popen(self.command, self.environment, stdout=file)
        return self._process

    def forget(self) -> None:
        """Remove what an earlier program has left in this one's home.

        Raises
        ------
        RunFailedError
            If that program still runs.
        """
        alive = self.processes()
        if alive:
            raise RunFailedError(f"{self.home} is in use by the processes {alive}: stop them first")
        shutil.rmtree(self.home, ignore_errors=True)

    def stop(self) -> None:
        """Ask it to end (SIGTERM), and see to it that nothing of it is left."""
        if self._process is not None:
            processes.stop(self._process, self.marker)

    def kill(self) -> None:
        """End it and all that it started at once (SIGKILL), as if its host had failed."""
        if self._process is not None:
            processes.kill(self._process, self.marker)

    @property
    def running(self) -> bool:
        """Whether it has been started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """How it ended; None while it runs or if it never did."""
        return None if self._process is None else self._process.poll()

    def processes(self) -> list[int]:
        """The ids of its processes that are alive: itself and what it started."""
        return processes.members(processes.groups(self.marker))

    def said(self) -> str:
        """What it has written to its log since it was last started."""
        return plain_text(self.log, start=self._said) if self.log.exists() else ""

    def wait_until_it_says(self, text: str, seconds: float) -> None:
        """Wait for a text in its log.

        Raises
        ------
        RunFailedError
            If it ends before, or says nothing of the kind in time; with the end of its log.
        """
        deadline = time.monotonic() + seconds
        while text not in self.said():
            if not self.running or time.monotonic() > deadline:
                how = "has not started in time" if self.running else "has ended"
                raise RunFailedError(
                    f"{self.command[0]} {how} ({self.log}):\n{last_lines(self.log)}"
                )
            time.sleep(POLL_SECONDS)


class StoppedAtTheEnd(ABC):
    """Starts programs at the beginning of a ``with`` block and leaves nothing of them behind."""

    def __enter__(self) -> Self:
        self._prepare()
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @abstractmethod
    def _prepare(self) -> None:
        """Make what `stop` needs."""

    @abstractmethod
    def _start(self) -> None:
        """Start the programs."""

    @abstractmethod
    def stop(self) -> None:
        """Stop what has been started."""
