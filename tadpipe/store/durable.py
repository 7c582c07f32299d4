"""Files and leases that outlive a kill: whole or absent, and held by the living only.

A lease is an exclusive `flock` on a file. The kernel drops it when its process dies, however it
dies, so a lease that can be taken belonged to a dead writer; no clocks and no process numbers.
"""

from __future__ import annotations

import errno
import fcntl
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from tadpipe.errors import StoreError
from tadpipe.location import Location

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Lease:
    """An exclusive hold on `path`, until `release` or the death of the process."""

    _held: ClassVar[weakref.WeakSet[Lease]] = weakref.WeakSet()

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self._handle = handle
        Lease._held.add(self)

    @classmethod
    def take(cls, path: Path, note: str = "", *, create: bool = True) -> Lease | None:
        """The lease on `path`, or None while somebody living holds it.

        Args:
            note: text left in the file by who takes the lease; "" leaves the file as it is.
            create: make the file; who only looks must not, or a folder could not be removed.
        Raises:
            FileNotFoundError: the folder (or, without `create`, the file) is not there.
        """
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        while True:
            handle = os.open(path, flags, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                return None
            except OSError:
                os.close(handle)
                raise
            try:  # whoever held it before may have removed the file before letting go
                same = os.stat(path).st_ino == os.fstat(handle).st_ino
            except FileNotFoundError:
                same = False
            if same:
                if note:
                    os.ftruncate(handle, 0)
                    os.pwrite(handle, note.encode(), 0)
                return cls(path, handle)
            os.close(handle)

    def release(self) -> None:
        """Let go; a second call does nothing."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    @classmethod
    def _forget_in_child(cls) -> None:
        # A forked child shares the hold and would keep it beyond its parent's death.
        for lease in cls._held:
            lease.release()


os.register_at_fork(after_in_child=Lease._forget_in_child)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def append_line(path: Path, line: str) -> None:
    """Add a line to a file in one write; a line that a kill cut off before does not swallow it."""
    append_lines(path, f"{line}\n".encode())


def append_lines(path: Path, raw: bytes) -> None:
    """Add whole lines to a file in one write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(handle).st_size
        torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
        os.write(handle, b"\n" + raw if torn else raw)
    finally:
        os.close(handle)


@contextmanager
def writing(place: Location) -> Iterator[None]:
    """Turn what the system says about writing below `place` into a StoreError."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        full = error.errno in _FULL or "errno = 28" in str(error)  # the latter is how h5py says it
        todo = (
            "Free some space and run the same command again"
            if full
            else "Make the folder writable and run the same command again"
        )
        raise StoreError(
            "The disk is full." if full else "Cannot write to the feature store.",
            f"{place}: {error.strerror or error}",
            f"{todo}; whatever was finished before is safe.",
        ) from error
