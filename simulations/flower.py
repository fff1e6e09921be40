"""Flower on this machine: a SuperLink of one's own, runs on it, and nothing left behind.

`flwr run` alone starts a SuperLink that outlives the command, keeps its first environment, and
reports a failed run with exit code 0. `LocalFlower` gives each experiment its own SuperLink on
a free port with a private `FLWR_HOME`, asks it how the run ended, and stops all it started.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from simulations import processes

Config = Mapping[str, bool | int | float | str]

CONNECTION = "local"
START_SECONDS = 60.0
POLL_SECONDS = 0.5
REASON_LINES = 12
ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    # Else every run installs the app's dependencies anew, torch included.
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


class RunFailedError(RuntimeError):
    """A run that did not complete, with the reason and the end of its log."""


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
        overrides = self.home / "run.toml"
        overrides.write_text(to_toml(run_config), encoding="utf-8")
        resources = federation_config(num_supernodes, client_cpus, client_gpus)
        command = ["flwr", "run", str(app), CONNECTION, "--stream"]
        command += ["--federation-config", resources, "--run-config", str(overrides)]
        if result is not None:
            result.unlink(missing_ok=True)  # one from an earlier run must not pass for this one's
        self._follow(command, log, while_running)
        self._check(log)
        if result is not None and not result.is_file():
            raise RunFailedError(f"the run completed but did not write {result}; its log is {log}")

    def _start(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        config = f'[superlink.{CONNECTION}]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
        (self.home / "config.toml").write_text(config, encoding="utf-8")
        programs = Path(sys.executable).parent  # Flower finds its other programs on PATH
        self._environment = os.environ | ENVIRONMENT
        self._environment["PATH"] = f"{programs}{os.pathsep}{os.environ.get('PATH', '')}"
        # Flower's programs talk over loopback, where no proxy may stand in between.
        direct = os.environ.get("no_proxy", os.environ.get("NO_PROXY", ""))
        self._environment["no_proxy"] = self._environment["NO_PROXY"] = f"{direct},127.0.0.1"
        self._environment["FLWR_HOME"] = self._environment["RAY_TMPDIR"] = str(self.home)
        command = ["flower-superlink", "--insecure", "--simulation", "--isolation", "subprocess"]
        command += ["--host", "127.0.0.1", "--port", str(port)]
        with (self.home / "superlink.log").open("wb") as log:
            self._superlink = subprocess.Popen(
                [str(programs / command[0]), *command[1:]],
                env=self._environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C reaches us alone, and we stop it in order
            )
        self._wait_until_healthy(f"http://127.0.0.1:{port}/health", self._superlink)

    def _wait_until_healthy(self, url: str, superlink: subprocess.Popen[bytes]) -> None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        deadline = time.monotonic() + START_SECONDS
        while superlink.poll() is None and time.monotonic() < deadline:
            try:
                with opener.open(url, timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(POLL_SECONDS / 2)
        reason = last_lines(self.home / "superlink.log")
        raise RunFailedError(f"Flower's SuperLink did not start (flower-superlink):\n{reason}")

    def _follow(self, command: list[str], log: Path, while_running: Callable[[], None]) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as file, self._popen(command, stdout=file) as process:
            try:
                while process.poll() is None:
                    while_running()
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(POLL_SECONDS)
                while_running()
            finally:
                process.kill()

    def _check(self, log: Path) -> None:
        started = re.search(r"Successfully started run (\d+)", plain_text(log))
        if started is None:
            raise RunFailedError(f"flwr run started no run:\n{last_lines(log)}")
        deadline = time.monotonic() + START_SECONDS
        run = self._status(started[1])
        while not run["status"].startswith("finished") and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)  # the log's stream ends a moment before the run does
            run = self._status(started[1])
        if run["status"] != "finished:completed":
            raise RunFailedError(
                f"the run ended as {run['status']} ({run['status-details']}); the end of its log "
                f"({log}):\n{last_lines(log)}"
            )

    def _status(self, run_id: str) -> dict[str, Any]:
        command = ["flwr", "ls", CONNECTION, "--run-id", run_id, "--format", "json"]
        with self._popen(command, stdout=subprocess.PIPE) as process:
            output = process.communicate()[0].decode()
        if "{" not in output:
            raise RunFailedError(f"flwr ls does not know the run {run_id}: {output.strip()}")
        answer = json.loads(output[output.index("{") :])
        if not answer.get("runs"):
            raise RunFailedError(f"flwr ls does not know the run {run_id}: {answer}")
        run: dict[str, Any] = answer["runs"][0]
        return run

    def _popen(self, command: list[str], stdout: Any) -> subprocess.Popen[bytes]:
        program = Path(sys.executable).parent / command[0]
        return subprocess.Popen(
            [str(program), *command[1:]],
            env=self._environment,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _stop(self) -> None:
        if self._superlink is not None:
            processes.stop(self._superlink, self.marker)
        shutil.rmtree(self.home, ignore_errors=True)


def to_toml(run_config: Config) -> str:
    """Return a run config as TOML, the one form that Flower reads without a limit on quotes.

    Raises
    ------
    ValueError
        If a value is neither a string, a bool, an integer nor a finite number.
    """
    lines = []
    for key, value in run_config.items():
        if not isinstance(value, bool | int | float | str):
            raise ValueError(f"{key} must be a string, number or bool, not {value!r}")
        try:
            # JSON's strings, numbers and bools are TOML's too.
            lines.append(f"{key} = {json.dumps(value, ensure_ascii=False, allow_nan=False)}\n")
        except ValueError as error:
            raise ValueError(f"{key} must be finite, not {value!r}") from error
    return "".join(lines)


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


def plain_text(log: Path) -> str:
    """Return a log without the terminal's colour codes."""
    return re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(encoding="utf-8", errors="replace"))


def last_lines(log: Path) -> str:
    """Return the last lines of a log that say something."""
    lines = [line.rstrip() for line in plain_text(log).splitlines()]
    told = [line for line in lines if line.split(":", 1)[-1].strip()]
    return "\n".join(told[-REASON_LINES:])
