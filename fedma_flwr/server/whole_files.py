"""Files that are there whole or not at all, whenever the process or the machine stops."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def written_whole(final: Path) -> Iterator[Path]:
    """Write a file under another name, and give it its own once it is on the disk.

    Parameters
    ----------
    final : Path
        The file; its folder is made if need be. What it held stays until the new one is whole.

    Yields
    ------
    Path
        Where to write.

    Raises
    ------
    OSError
        If the folder cannot be made or the file not be written.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = final.with_suffix(".partial")
    try:
        yield partial
        _sync(partial)
        os.replace(partial, final)
    except Exception:
        with suppress(OSError):  # on a full disk, half a file is in the next one's way
            partial.unlink(missing_ok=True)
        raise
    _sync(final.parent)  # the new name, too, must survive a power cut


def _sync(path: Path) -> None:
    """Have the operating system write a file or a folder to the disk."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open folders
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
