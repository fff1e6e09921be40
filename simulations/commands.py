"""Flower's command line against one SuperLink: run an app, follow its log, ask how it ended.

`flwr run` reports a failed run with exit code 0, and its log's stream ends a moment before the run
does; `FlowerCommands.run` therefore asks the SuperLink, and raises what the run died of.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from ssl import SSLContext
from typing import Any

Config = Mapping[str, bool | int | float | str]

HOST = "127.0.0.1"
START_SECONDS = 60.0
POLL_SECONDS = 0.5
REASON_LINES = 12
PROGRAMS = Path(sys.executable).parent  # Flower finds its other programs on PATH
ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    # Else every run installs the app's dependencies anew, torch included.
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


class RunFailedError(RuntimeError):
    """A run that did not complete, with the reason and the end of its log."""


class FlowerCommands:
    """What a user of a SuperLink does with ``flwr``.

    Parameters
    ----------
    home : Path
        The user's FLWR_HOME, a folder of absolute path.
    connection : str
        Name of the SuperLink in Flower's configuration, which is written to `home`.
    address : str
        ``host:port`` of the SuperLink.
    root_certificates : Path, optional (default: None)
        CA that the SuperLink's certificate must be of; None: no TLS.
    """

    def __init__(
        self, home: Path, connection: str, address: str, root_certificates: Path | None = None
    ) -> None:
        self.home = home
        self.connection = connection
        self.environment = environment(home)
        trust = "insecure = true"
        if root_certificates is not None:
            trust = f"root-certificates = {json.dumps(str(root_certificates))}"
        home.mkdir(parents=True, exist_ok=True)
        config = f'[superlink.{connection}]\naddress = "{address}"\n{trust}\n'
        (home / "config.toml").write_text(config, encoding="utf-8")

    def run(
        self,
        app: Path,
        run_config: Config,
        *,
        log: Path,
        options: Sequence[str] = (),
        result: Path | None = None,
        while_running: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        """Run a Flower app to its end.

        Parameters
        ----------
        app : Path
            Folder of the app's pyproject.toml.
        run_config : Mapping
            Overrides of the app's config; paths in it should be absolute.
        log : Path
            File that takes the run's log.
        options : sequence of str (default: ())
            More arguments of ``flwr run``.
        result : Path (default: None)
            File that the run must have written.
        while_running : Callable (default: does nothing)
            Called about twice a second while the run goes on.

        Returns
        -------
        dict
            What ``flwr ls`` says about the run: ``run-id``, ``network-traffic`` and so on.

        Raises
        ------
        RunFailedError
            If the run did not complete or left no `result`.
        """
        overrides = self.home / "run.toml"
        overrides.write_text(to_toml(run_config), encoding="utf-8")
        command = ["flwr", "run", str(app), self.connection, "--stream", *options]
        if result is not None:
            result.unlink(missing_ok=True)  # one from an earlier run must not pass for this one's
        self._follow([*command, "--run-config", str(overrides)], log, while_running)
        run = self._check(log)
        if result is not None and not result.is_file():
            raise RunFailedError(f"the run completed but did not write {result}; its log is {log}")
        return run

    def ask(self, *command: str) -> dict[str, Any]:
        """Return what a ``flwr`` command with ``--format json`` answers.

        Raises
        ------
        RunFailedError
            If the answer is no JSON object, or says that the command failed.
        """
        arguments = ["flwr", *command, self.connection, "--format", "json"]
        with popen(arguments, self.environment, stdout=subprocess.PIPE) as process:
            output = process.communicate()[0].decode()
        if "{" not in output:
            raise RunFailedError(f"flwr {' '.join(command)}: {output.strip()}")
        answer: dict[str, Any] = json.loads(output[output.index("{") :])
        if not answer.get("success", True):
            raise RunFailedError(f"flwr {' '.join(command)}: {answer}")
        return answer

    def _follow(self, command: list[str], log: Path, while_running: Callable[[], None]) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as file, popen(command, self.environment, stdout=file) as process:
            try:
                while process.poll() is None:
                    while_running()
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(POLL_SECONDS)
                while_running()
            finally:
                process.kill()

    def _check(self, log: Path) -> dict[str, Any]:
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
        return run

    def _status(self, run_id: str) -> dict[str, Any]:
        answer = self.ask("ls", "--run-id", run_id)
        if not answer.get("runs"):
            raise RunFailedError(f"flwr ls does not know the run {run_id}: {answer}")
        run: dict[str, Any] = answer["runs"][0]
        return run


def environment(home: Path) -> dict[str, str]:
    """Return the environment of one of Flower's programs that has `home` as its FLWR_HOME."""
    variables = os.environ | ENVIRONMENT | {"FLWR_HOME": str(home)}
    variables["PATH"] = f"{PROGRAMS}{os.pathsep}{os.environ.get('PATH', '')}"
    # Flower's programs talk over loopback, where no proxy may stand in between.
    direct = os.environ.get("no_proxy", os.environ.get("NO_PROXY", ""))
    variables["no_proxy"] = variables["NO_PROXY"] = f"{direct},{HOST}"
    return variables


def popen(command: Sequence[str], env: Mapping[str, str], stdout: Any) -> subprocess.Popen[bytes]:
    """Start one of Flower's programs in a session of its own.

    Ctrl-C then reaches us alone, and we stop what we have started in order.
    """
    return subprocess.Popen(
        [str(PROGRAMS / command[0]), *command[1:]],
        env=env,
        stdout=stdout,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


def free_ports(count: int) -> list[int]:
    """Return ports on loopback that nobody listens on at this moment."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((HOST, 0))
        return [probe.getsockname()[1] for probe in probes]


def wait_until_healthy(
    port: int, superlink: subprocess.Popen[bytes], log: Path, tls: SSLContext | None = None
) -> None:
    """Wait until a SuperLink on loopback answers.

    Raises
    ------
    RunFailedError
        If it ends, or does not answer within a minute; with the end of its log.
    """
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if tls is not None:
        handlers.append(urllib.request.HTTPSHandler(context=tls))
    opener = urllib.request.build_opener(*handlers)
    url = f"{'https' if tls else 'http'}://{HOST}:{port}/health"
    deadline = time.monotonic() + START_SECONDS
    while superlink.poll() is None and time.monotonic() < deadline:
        try:
            with opener.open(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(POLL_SECONDS / 2)
    reason = last_lines(log)
    raise RunFailedError(f"Flower's SuperLink did not start (flower-superlink):\n{reason}")


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


def plain_text(log: Path, start: int = 0) -> str:
    """Return a log without the terminal's colour codes, from a byte on."""
    text = log.read_bytes()[start:].decode(errors="replace")
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def last_lines(log: Path) -> str:
    """Return the last lines of a log that say something."""
    lines = [line.rstrip() for line in plain_text(log).splitlines()]
    told = [line for line in lines if line.split(":", 1)[-1].strip()]
    return "\n".join(told[-REASON_LINES:])
