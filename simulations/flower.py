"""Flower on this machine: a SuperLink of one's own, runs on it, and nothing left behind.

`flwr run` alone starts a SuperLink that outlives the command, keeps its first environment, and
reports a failed run with exit code 0. `LocalFlower` gives each experiment its own SuperLink on
a free port with a private `FLWR_HOME`, asks it how the run ended, and stops all it started.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from fedma_flwr.tasks.local_models import VARIABLE as LOCAL_MODELS_VARIABLE
from simulations.commands import HOST, Config, FlowerCommands, free_ports, wait_until_healthy
from simulations.programs import Program, StoppedAtTheEnd

CONNECTION = "local"


class LocalFlower(StoppedAtTheEnd):
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
        """Run a Flower app to its end; see `FlowerCommands.run`.

        Parameters
        ----------
        app, run_config, log, result, while_running
            Those of `FlowerCommands.run`.
        num_supernodes : int
            Number of simulated clients.
        client_cpus : int (default: 1)
            CPUs for each client that trains at the same time as others.
        client_gpus : float (default: 0.0)
            GPUs, or the share of one, for each such client.
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

    def _prepare(self) -> None:
        (self._port,) = free_ports(1)
        # Below /tmp whatever TMPDIR says: Ray's socket paths must stay under 104 characters.
        self.home = Path(tempfile.mkdtemp(prefix="fedma-", dir="/tmp"))
        command = ["flower-superlink", "--insecure", "--simulation", "--isolation", "subprocess"]
        command += ["--host", HOST, "--port", str(self._port)]
        # All nodes are this machine's: local models may be wherever a run wants them.
        variables = {"RAY_TMPDIR": str(self.home), LOCAL_MODELS_VARIABLE: os.sep}
        self._superlink = Program(command, self.home, variables)
        self.marker = self._superlink.marker

    def _start(self) -> None:
        self._commands = FlowerCommands(self.home, CONNECTION, f"{HOST}:{self._port}")
        self._commands.environment["RAY_TMPDIR"] = str(self.home)
        process = self._superlink.start()
        wait_until_healthy(self._port, process, self._superlink.log)

    def stop(self) -> None:
        """Stop the SuperLink and all that it started, and remove its folder."""
        self._superlink.stop()
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
