"""Folders that a run writes to: proven to be writable, and its own for as long as it lasts."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging import WARNING
from pathlib import Path

from flwr.supercore import log

_PROBE_BYTES = 4096
_HELD: set[int] = set()  # handles of the locks that this process holds


class _HeldError(Exception):
    """Another run holds the lock."""


def as_folder(argument: str, value: str | os.PathLike[str]) -> Path:
    """The path of a folder; a leading ``~`` is a home.

    Raises
    ------
    ValueError
        If there is no such home; names the argument.
    """
    try:
        return Path(value).expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"{argument} was {str(value)!r}, but that home is not known: give the whole path"
        ) from error


def make_folder(argument: str, path: Path) -> None:
    """Make a folder, and those that it is in.

    Raises
    ------
    ValueError
        If it cannot be made; names the argument.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(argument, path, error) from error


@contextmanager
def claimed(argument: str, path: Path, stale: tuple[str, ...] = ()) -> Iterator[None]:
    """Within this context a folder is there, can be written to, and is no other run's.

    What keeps others out is a lock of the operating system on the file ``.<argument>.lock``. It
    ends with its process, however that ends: a lock file that a dead run has left is no obstacle.

    Parameters
    ----------
    argument : str
        What the folder is called in errors. Folders of different arguments may be the same one.
    path : Path
        The folder; it is made if need be.
    stale : tuple of str
        Patterns of the temporary files that a run which was killed may have left: they go.

    Raises
    ------
    ValueError
        If it cannot be made or written to, or if another run is using it.
    """
    file = path / f".{argument}.lock"
    make_folder(argument, path)
    try:
        handle = _lock(file)
    except _HeldError as error:
        raise ValueError(
            f"{argument} {path} is in use by another run ({error}): give this run a folder of its "
            "own, or wait until that one has ended"
        ) from None
    except OSError as error:
        raise _unusable(argument, path, error) from error
    owner = os.getpid()
    try:
        try:
            _probe(path / f".{argument}.probe")
            _remove(path, stale)
        except OSError as error:
            raise _unusable(argument, path, error) from error
        yield
    finally:
        if os.getpid() == owner:  # a forked child has closed its copy already
            _release(file, handle)


def _unusable(argument: str, path: Path, error: OSError) -> ValueError:
    return ValueError(
        f"{argument} {path} cannot be written to ({error}): give a folder that can be, or see to "
        "its permissions and its space"
    )


def _probe(file: Path) -> None:
    """Write a file to the disk and remove it: permissions, space and names in one go."""
    try:
        with file.open("wb") as opened:
            opened.write(bytes(_PROBE_BYTES))
            opened.flush()
            os.fsync(opened.fileno())
    finally:
        file.unlink(missing_ok=True)


def _remove(path: Path, patterns: tuple[str, ...]) -> None:
    for pattern in patterns:
        for file in path.glob(pattern):
            file.unlink(missing_ok=True)


def _lock(file: Path) -> int:
    """Hold the lock of a file, which says who does.

    Raises
    ------
    _HeldError
        If another run holds it.
    OSError
        If the file cannot be made.
    """
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _acquire(file, handle)
            if not _is_there(file, handle):  # its holder has just removed it
                os.close(handle)
                continue
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
        except BaseException:
            os.close(handle)
            raise
        _HELD.add(handle)
        return handle


def _acquire(file: Path, handle: int) -> None:
    try:
        _try_lock(handle)
    except (BlockingIOError, PermissionError) as error:
        said = os.read(handle, 200).decode(errors="replace") if sys.platform != "win32" else ""
        raise _HeldError("".join(c for c in said if c.isprintable()) or "unnamed") from error
    except OSError as error:
        log(WARNING, "%s cannot be locked (%s): see that no other run uses it.", file, error)


def _is_there(file: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), file.stat())
    except FileNotFoundError:
        return False


def _release(file: Path, handle: int) -> None:
    """Remove the lock file, while it is locked, and let go of it."""
    _HELD.discard(handle)
    with suppress(OSError):  # the folder may have vanished; Windows removes no open file
        if _is_there(file, handle):
            file.unlink()
    os.close(handle)
    if sys.platform == "win32":
        with suppress(OSError):
            file.unlink()


if sys.platform == "win32":
    import msvcrt

    def _try_lock(handle: int) -> None:
        os.lseek(handle, 2**30, os.SEEK_SET)  # past the text, which others may read
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        finally:
            os.lseek(handle, 0, os.SEEK_SET)

else:
    import fcntl

    def _try_lock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _close_in_child() -> None:
        """A forked child must not hold a lock for longer than its parent lives."""
        while _HELD:
            os.close(_HELD.pop())

    os.register_at_fork(after_in_child=_close_in_child)
