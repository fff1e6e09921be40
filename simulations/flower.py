"""Flower on this machine: a SuperLink of one's own, runs on it, and nothing left behind.

`flwr run` alone starts a SuperLink that outlives the command, keeps its first environment, and
reports a failed run with exit code 0. `LocalFlower` gives each experiment its own SuperLink on
a free port with a private `FLWR_HOME`, asks it how the run ended, and stops all it started.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from simulations import processes
from simulations.commands import (
    HOST,
    Config,
    FlowerCommands,
    RunFailedError,
    free_ports,
    last_lines,
    plain_text,
    popen,
    to_toml,
    wait_until_healthy,
)

__all__ = [
    "Config",
    "LocalFlower",
    "RunFailedError",
    "federation_config",
    "last_lines",
    "plain_text",
    "to_toml",
]

CONNECTION = "local"


class LocalFlower:
    """A SuperLink in simulation mode that lives as long as the `with` block.

    Attributes
    ----------
    home : Path
        Its folder for state, logs and Ray's session, removed at the end.
    marker : str
        "NAME=value" in the environment of every process that it starts.

    Examples
    --------
    >>> with LocalFlower() as flower:
    ...     flower.run(app, {"num-server-rounds": 3}, num_supernodes=10, log=Path("run.log"))
    """

    def __enter__(self) -> Self:
        # Below /tmp whatever TMPDIR says: Ray's socket paths must stay under 104 characters.
        self.home = Path(tempfile.mkdtemp(prefix="fedma-", dir="/tmp"))
        self.marker = f"FLWR_HOME={self.home}"
        self._superlink: subprocess.Popen[bytes] | None = None
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    def run(
        self,
        app: Path,
        run_config: Config,
        *,
        num_supernodes: int,
        log: Path,
        client_cpus: int = 1,
        client_gpus: float = 0.0,
        result: Path | None = None,
        while_running: Callable[[], None] = lambda: None,
    ) -> None:
        """Run a Flower app to its end.

        Parameters
        ----------
        app : Path
            Folder of the app's pyproject.toml.
        run_config : Mapping
            Overrides of the app's config; paths in it should be absolute.
        num_supernodes : int
            Number of simulated clients.
        log : Path
            File that takes the run's log.
        client_cpus : int (default: 1)
            CPUs for each client that trains at the same time as others.
        client_gpus : float (default: 0.0)
            GPUs, or the share of one, for each such client.
        result : Path (default: None)
            File that the run must have written.
        while_running : Callable (default: does nothing)
            Called about twice a second while the run goes on.

        Raises
        ------
        RunFailedError
            If the run did not complete or left no `result`.
        """
        resources = federation_config(num_supernodes, client_cpus, client_gpus)
        self._commands.run(
            app,
            run_config,
            log=log,
            options=["--federation-config", resources],
            result=result,
            while_running=while_running,
        )

    def _start(self) -> None:
        (port,) = free_ports(1)
        self._commands = FlowerCommands(self.home, CONNECTION, f"{HOST}:{port}")
        self._commands.environment["RAY_TMPDIR"] = str(self.home)
        command = ["flower-superlink", "--insecure", "--simulation", "--isolation", "subprocess"]
        command += ["--host", HOST, "--port", str(port)]
        log = self.home / "superlink.log"
        with log.open("wb") as file:
            self._superlink = popen(command, self._commands.environment, stdout=file)
        wait_until_healthy(port, self._superlink, log)

    def _stop(self) -> None:
        if self._superlink is not None:
            processes.stop(self._superlink, self.marker)
        shutil.rmtree(self.home, ignore_errors=True)


def federation_config(num_supernodes: int, client_cpus: int, client_gpus: float) -> str:
    """Return `flwr run`'s --federation-config: the clients and what each may use."""
    config: dict[str, float] = {
        "num-supernodes": num_supernodes,
        "client-resources-num-cpus": client_cpus,
        "client-resources-num-gpus": client_gpus,
    }
    useful = num_supernodes * client_cpus
    if useful < (os.cpu_count() or 1):
        config["init-args-num-cpus"] = useful  # Ray starts a worker for every CPU it may use
    return " ".join(f"{key}={value}" for key, value in config.items())
