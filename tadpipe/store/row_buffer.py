"""Rows of a video gathered bit by bit: a few megabytes in memory, the rest in a file.

Features of a two-hour video are hundreds of megabytes; memory must not depend on its length.
"""

from __future__ import annotations

import tempfile
from typing import IO, Any

import numpy as np

HELD_BYTES = 8 << 20
Array = np.ndarray[Any, Any]


class RowBuffer:
    """Rows [n, C] one after another.

    Args:
        held_bytes: kept in memory before they go into a temporary file without a name.
    """

    def __init__(self, held_bytes: int = HELD_BYTES) -> None:
        self._most_bytes = held_bytes
        self._held: list[Array] = []
        self._held_bytes = 0
        self._count = 0
        self._file: IO[bytes] | None = None

    def __len__(self) -> int:
        return self._count

    def append(self, rows: Array) -> None:
        """Add rows [n, C], all of one width and type.

        Raises:
            OSError: the temporary folder is full.
        """
        self._held.append(rows)
        self._held_bytes += rows.nbytes
        self._count += len(rows)
        if self._held_bytes > self._most_bytes:
            self._spill()

    def array(self) -> Array:
        """All rows [rows, C], at least one; a memory map once some are in the file."""
        if self._file is None:
            return np.concatenate(self._held)
        width, dtype = self._spill()
        return np.memmap(self._file, dtype, mode="r", shape=(self._count, width))

    def _spill(self) -> tuple[int, np.dtype[Any]]:
        """Move what is held into the file; the width and type of the rows."""
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as its rows
        last = self._held[-1]
        for rows in self._held:
            self._file.write(np.ascontiguousarray(rows).data.cast("B"))
        self._file.flush()
        self._held, self._held_bytes = [last[:0]], 0
        return last.shape[1], last.dtype
