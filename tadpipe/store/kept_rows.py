"""Rows of a store on object storage, read from there once: a training asks for them every epoch.

A video is read whole when the first of its rows is asked for, and kept in a file without a name in
the store's folder on this machine; the file is gone with the process, however that ends.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import threading
import weakref
from pathlib import Path
from typing import IO, Any

import numpy as np

from tadpipe.store.backend import PartRows
from tadpipe.store.metadata import VideoRow

logger = logging.getLogger(__name__)

RESERVE_BYTES = 1 << 30  # of the disk that are left to others
Array = np.ndarray[Any, Any]


class KeptRows:
    """The file, and which videos are in it.

    Args:
        folder: on the disk that has room for the rows.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._end_bytes = 0
        self._adding = threading.Lock()
        self._videos: dict[tuple[str, str, int], PartRows] = {}
        self.is_full = False

    def video(self, fid: str, part: PartRows, row: VideoRow) -> PartRows:
        """The rows of a video as those of its part, read through the file."""
        key = fid, row.part, row.first_row
        if key not in self._videos:
            self._videos[key] = _KeptVideo(self, part, row)
        return self._videos[key]

    def add(self, rows: Array) -> int | None:
        """Where the rows are in the file, bytes; None if the disk has no room for them."""
        with self._adding:
            if self.is_full:
                return None
            at = self._end_bytes
            try:
                self._write(np.ascontiguousarray(rows).data.cast("B"))
            except OSError as error:
                self.is_full = True
                logger.warning(
                    "%s: %s; features are read from the store every time", self._folder, error
                )
                if self._file is not None:
                    with contextlib.suppress(OSError):
                        self._file.truncate(at)
                return None
            self._end_bytes = at + rows.nbytes
            return at

    def read(self, at: int, into: memoryview) -> None:
        """Fill `into` with what was added, from byte `at` on."""
        assert self._file is not None  # `at` came from `add`
        while into:
            count = os.preadv(self._file.fileno(), [into], at)
            if not count:
                raise OSError(f"{self._folder}: the file of kept rows was cut off")
            into, at = into[count:], at + count

    def _write(self, raw: memoryview) -> None:
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115
            weakref.finalize(self, self._file.close)
        if shutil.disk_usage(self._folder).free < len(raw) + RESERVE_BYTES:
            raise OSError(f"less than {RESERVE_BYTES >> 30} GiB of the disk would be left")
        while raw:
            raw = raw[self._file.write(raw) :]


class _KeptVideo:
    """`PartRows` of a part, of which only one video's rows are asked for."""

    def __init__(self, kept: KeptRows, part: PartRows, row: VideoRow) -> None:
        self.shape = part.shape
        self._kept = kept
        self._part = part
        self._first, self._stop = row.first_row, row.first_row + row.rows
        self._features: _Place | None = None
        self._times: _Place | None = None

    def read(self, start: int, stop: int, step: int) -> Array:
        if self._features is None and not self._kept.is_full:
            rows = self._part.read(self._first, self._stop, 1)
            self._features = _Place.of(self._kept, rows)
        if self._features is None:
            return self._part.read(start, stop, step)
        return self._features.rows(start - self._first, stop - self._first)[::step]

    def times(self, start: int, stop: int) -> Array:
        if self._times is None and not self._kept.is_full:
            self._times = _Place.of(self._kept, self._part.times(self._first, self._stop))
        if self._times is None:
            return self._part.times(start, stop)
        return self._times.rows(start - self._first, stop - self._first)


class _Place:
    """An array in the file."""

    def __init__(self, kept: KeptRows, at: int, like: Array) -> None:
        self._kept = kept
        self._at = at
        self._dtype, self._row_shape = like.dtype, like.shape[1:]
        self._row_bytes = like.dtype.itemsize * int(np.prod(like.shape[1:]))

    @classmethod
    def of(cls, kept: KeptRows, rows: Array) -> _Place | None:
        at = kept.add(rows)
        return None if at is None else cls(kept, at, rows)

    def rows(self, start: int, stop: int) -> Array:
        rows = np.empty((stop - start, *self._row_shape), self._dtype)
        if rows.size:
            self._kept.read(self._at + start * self._row_bytes, rows.data.cast("B"))
        return rows
