"""Replies that wait on disk instead of in memory, so that it does not grow with the cohort.

The file has no name: whatever ends the process, nothing of it is left. It is mapped into memory, so
that tensors in it are read as any others are, and the system keeps of it what there is room for.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from logging import WARNING
from pathlib import Path
from typing import IO

from flwr.app import RecordDict
from flwr.supercore import log

#: Bytes of a stage's replies that are kept in memory before any go to disk.
IN_MEMORY = 2**28
_ALIGNED = 64  # bytes: where each array begins
_PAGE = mmap.ALLOCATIONGRANULARITY
_LEAST = 2**14  # bytes of a reply that is worth a file's page


class Spill:
    """Where the arrays of a stage's replies go once they take too much memory.

    Parameters
    ----------
    folder : Path or None
        Of the file; it is there. None: all replies are kept in memory.
    in_memory : int, optional (default: 256 MiB)
        Bytes of a stage's replies that are kept in memory.
    """

    def __init__(self, folder: Path | None, in_memory: int | None = None) -> None:
        self.folder, self._most = folder, IN_MEMORY if in_memory is None else in_memory
        self.begin()

    def begin(self) -> None:
        """Begin a stage: what is on disk is let go as soon as nobody reads it."""
        self._file: IO[bytes] | None = None
        self._kept = self._end = 0

    def put(self, content: RecordDict) -> None:
        """Move a reply's arrays to disk, if there are too many in memory.

        A disk that is full costs a warning and memory, and nothing else.

        Parameters
        ----------
        content : RecordDict
            Of the reply; its arrays' data becomes a view of the file.
        """
        arrays = [a for record in content.array_records.values() for a in record.values()]
        arrays = [array for array in arrays if isinstance(array.data, bytes)]
        size = sum(_room(len(array.data)) for array in arrays)
        if self.folder is None or self._kept + size <= self._most or size < _LEAST:
            self._kept += size
            return
        try:
            view = self._written([array.data for array in arrays], size)
        except OSError as error:
            log(WARNING, "Replies stay in memory: %s cannot take them: %s", self.folder, error)
            self.folder = None
            return
        start = 0
        for array in arrays:
            length = len(array.data)
            array.data = view[start : start + length]  # type: ignore[assignment]  # as good as bytes
            start += _room(length)

    def _written(self, parts: list[bytes], size: int) -> memoryview:
        """Bytes in the file, each part where an array may begin."""
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115 (until the stage ends)
        start, handle = self._end, self._file.fileno()
        os.truncate(handle, start + size)
        offset = start
        for part in parts:
            written = 0
            while written < len(part):
                written += os.pwrite(handle, memoryview(part)[written:], offset + written)
            offset += _room(len(part))
        self._end = -(-(start + size) // _PAGE) * _PAGE
        # Private: whoever changes a tensor changes no file.
        mapped = mmap.mmap(handle, size, flags=mmap.MAP_PRIVATE, offset=start)
        return memoryview(mapped)


def _room(length: int) -> int:
    return -(-length // _ALIGNED) * _ALIGNED
