"""The spool: finished videos on their way into a part, each a file of its own, safe from kills.

A file appears under its name only when all of it is on disk. Every writer spools into a folder of
its own and holds the lease on it; a folder whose lease can be taken belonged to a dead writer, and
whoever takes it adopts the finished videos by renaming them. Where a file system does not honour
leases, the rename still gives each file to exactly one writer.
Layout: magic, length of the header, header (JSON), rows [n, C], row times [n] float64.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tadpipe.errors import StoreError
from tadpipe.store.durable import Lease, sync_folder

_MAGIC = b"tadspool"
_SUFFIX = ".video"
LEASE = "lease"
TAKE_SEC = 2.0  # how long a writer asks for the lease of its own folder
Array = np.ndarray[Any, Any]


class FinishedVideo(Protocol):
    """A video that can be put into a part."""

    @property
    def line(self) -> Mapping[str, Any]: ...  # of the row table, but for `first_row`

    @property
    def dtype(self) -> str: ...

    @property
    def channels(self) -> int: ...

    @property
    def rows(self) -> int: ...

    def features(self) -> Array: ...  # [n, C]

    def times(self) -> Array: ...  # [n] float64


@dataclass(frozen=True)
class SpooledVideo:
    """One finished video in the spool."""

    path: Path
    line: Mapping[str, Any]  # its line of the row table, but for `first_row`
    dtype: str
    channels: int
    data_start: int  # byte where the rows begin

    @property
    def rows(self) -> int:
        return int(self.line["rows"])

    def features(self) -> Array:
        """[n, C], mapped from the file."""
        shape = (self.rows, self.channels)
        return np.memmap(self.path, self.dtype, mode="r", offset=self.data_start, shape=shape)

    def times(self) -> Array:
        """[n] float64."""
        start = self.data_start + self.rows * self.channels * np.dtype(self.dtype).itemsize
        return np.fromfile(self.path, "<f8", count=self.rows, offset=start)


class Spool:
    """The folder of one living writer."""

    def __init__(self, root: Path, writer_id: str, note: Mapping[str, Any]) -> None:
        self.root = root
        self.folder = root / writer_id
        self._lease = self._take(note)
        self._count = 0
        if any(self.folder.glob(f"*{_SUFFIX}")):  # the same writer id, in an earlier life
            self._count = 1 + max(int(p.name[:8]) for p in self.folder.glob(f"*{_SUFFIX}"))

    def _take(self, note: Mapping[str, Any]) -> Lease:
        """Who looks for dead writers holds a lease for a moment, a writer of this name for long."""
        give_up = time.monotonic() + TAKE_SEC
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                lease = Lease.take(self.folder / LEASE, json.dumps(note))
            except FileNotFoundError:  # cleaned away between the two steps
                continue
            if lease is not None:
                return lease
            if time.monotonic() > give_up:
                raise StoreError(
                    "Another writer with this name is at work.",
                    str(self.folder),
                    "Give each writer a name of its own.",
                )
            time.sleep(0.01)

    def add(self, line: Mapping[str, Any], features: Array, times: Array) -> None:
        """Put a video on disk; when this returns it survives any kill."""
        header = json.dumps(
            {"line": line, "dtype": features.dtype.str, "channels": features.shape[1]}
        ).encode()
        target = self._next_path(str(line["content_sha256"]))
        temporary = target.with_suffix(".tmp")
        try:
            with open(temporary, "wb") as file:
                file.write(_MAGIC + len(header).to_bytes(8, "little") + header)
                file.write(features.data.cast("B"))
                file.write(times.data.cast("B"))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(self.folder)

    def videos(self) -> list[SpooledVideo]:
        """What is spooled here, in order of arrival."""
        return read_spool(self.folder)

    def remove(self, videos: Sequence[SpooledVideo]) -> None:
        for video in videos:
            video.path.unlink(missing_ok=True)

    def adopt(self) -> int:
        """Take over what dead writers left; returns the number of videos."""
        adopted = 0
        for folder in dead_folders(self.root, but=self.folder):
            for video in read_spool(folder):
                os.rename(video.path, self._next_path(str(video.line["content_sha256"])))
                adopted += 1
            clear(folder)
        return adopted

    def close(self) -> None:
        """Give the folder up; what is left in it waits for the next writer."""
        clear(self.folder)
        self._lease.release()

    def _next_path(self, content_sha256: str) -> Path:
        path = self.folder / f"{self._count:08d}-{content_sha256[:16]}{_SUFFIX}"
        self._count += 1
        return path


def dead_folders(root: Path, but: Path | None = None) -> Iterator[Path]:
    """Folders of writers that are no more, each held while the loop is at it."""
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        if folder == but or not folder.is_dir():
            continue
        try:
            lease = Lease.take(folder / LEASE, create=False)
        except FileNotFoundError:  # not taken yet, or given up: nothing finished can be in it
            with contextlib.suppress(OSError):
                folder.rmdir()
            continue
        if lease is None:
            continue
        try:
            yield folder
        finally:
            lease.release()


def is_alive(root: Path, writer_id: str) -> bool:
    """Whether a writer of this name is at work."""
    folder = root / writer_id
    if not folder.is_dir():
        return False
    try:
        lease = Lease.take(folder / LEASE, create=False)
    except FileNotFoundError:
        return False
    if lease is None:
        return True
    lease.release()
    return False


def read_spool(folder: Path) -> list[SpooledVideo]:
    """The finished videos of a spool folder, in order of arrival."""
    found = []
    for path in sorted(folder.glob(f"*{_SUFFIX}")):
        try:
            with open(path, "rb") as file:
                start = file.read(len(_MAGIC) + 8)
                length = int.from_bytes(start[len(_MAGIC) :], "little")
                header = json.loads(file.read(length))
        except FileNotFoundError:  # adopted by another writer this moment
            continue
        found.append(
            SpooledVideo(
                path, header["line"], header["dtype"], header["channels"], len(start) + length
            )
        )
    return found


def clear(folder: Path) -> None:
    """Remove a spool folder's half-written files, and the folder unless videos wait in it.

    Whoever calls holds its lease, which therefore goes last.
    """
    waiting = False
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.suffix == _SUFFIX:
            waiting = True
        elif path.name != LEASE:
            path.unlink()
    if not waiting:
        (folder / LEASE).unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):  # somebody looked, and finished the job
            folder.rmdir()
