"""Finding and stopping what a SuperLink started: Flower's programs detach, Ray's are many.

Two marks find them all. Children inherit the environment, however far they detach, so a value
that no one else has names Flower's programs; Ray's workers write their titles over theirs, but
stay in the process group of the program that started Ray. Both are read from /proc. A system
without it has Flower's own rule alone: its programs end when the one that started them does.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

GRACE_SECONDS = 5.0
POLL_SECONDS = 0.1


def groups(marker: str) -> set[int]:
    """Return the process groups of the processes that have `marker` in their environment.

    The marker is "NAME=value"; the caller's own group is left out.
    """
    found = set()
    for process in _processes():
        with suppress(OSError):  # it has ended, or belongs to someone else
            environment = (process / "environ").read_bytes().decode(errors="replace")
            if marker in environment.split("\0"):
                found.add(os.getpgid(int(process.name)))
    return found - {os.getpgrp()}


def members(process_groups: set[int]) -> list[int]:
    """Return the ids of the processes of some process groups, without those that have ended."""
    found = []
    for process in _processes():
        with suppress(OSError):
            # "pid (name) state parent group ...", where the name may hold anything
            state, _, group = (process / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(group) in process_groups and state != "Z":
                found.append(int(process.name))
    return found


def stop(leader: subprocess.Popen[bytes], marker: str) -> None:
    """Stop a process and all that it started; kill those that do not go by themselves.

    Parameters
    ----------
    leader : subprocess.Popen
        The process that started the others; it is asked first, so that they end in order.
    marker : str
        "NAME=value" in the environment of the leader and of what it started, and of no other
        process.
    """
    started = groups(marker)
    leader.terminate()
    for sign in (signal.SIGTERM, signal.SIGKILL):
        if _gone(leader, started, marker):
            return
        _signal(started, sign)
    _gone(leader, started, marker)


def kill(leader: subprocess.Popen[bytes], marker: str) -> None:
    """Kill a process and all that it started at once, as if their machine had failed.

    Parameters
    ----------
    leader : subprocess.Popen
        The process that started the others.
    marker : str
        As for `stop`.
    """
    leader.kill()
    started = groups(marker)
    _signal(started, signal.SIGKILL)
    if not _gone(leader, started, marker):
        _signal(started, signal.SIGKILL)
        _gone(leader, started, marker)


def _signal(started: set[int], sign: signal.Signals) -> None:
    for pid in members(started):
        with suppress(ProcessLookupError):
            os.kill(pid, sign)


def _gone(leader: subprocess.Popen[bytes], started: set[int], marker: str) -> bool:
    """Wait a little for all to end and say whether they have; `started` takes latecomers in."""
    deadline = time.monotonic() + GRACE_SECONDS
    while True:
        started |= groups(marker)
        if leader.poll() is not None and not members(started):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)


def _processes() -> list[Path]:
    proc = Path("/proc")
    return [entry for entry in proc.iterdir() if entry.name.isdigit()] if proc.is_dir() else []
