"""A feature store as one HDF5 file: the same contents as the Zarr kind, one writer at a time.

    /                                  attribute: store format version
    /annotations                       bytes, attribute sha256
    /features/<fid>                    attribute: the spec as JSON
        parts/<part>/features [R, C]   contiguous datasets, so that rows come from a memory map
        parts/<part>/times    [R]
        commits/<part>                 the commit as bytes, as in a Zarr store
    beside it: <file>.work/            spool, ledger, lock

A killed HDF5 writer ruins the file it writes to. So nothing ever writes to the file: a change is
made in a copy that replaces it. That costs a copy of the file each time, which is why parts are
packed the more rarely the larger the file is.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tadpipe.errors import ConfigError, StoreError
from tadpipe.store.backend import (
    FORMAT_VERSION,
    SPEC_KEY,
    VERSION_KEY,
    Backend,
    Flaw,
    PartRows,
    check_version,
)
from tadpipe.store.commits import Commit, decode, encode
from tadpipe.store.content import work_folder
from tadpipe.store.durable import Lease, sync_folder, writing
from tadpipe.store.metadata import FeatureSpec
from tadpipe.store.spool import SpooledVideo

logger = logging.getLogger(__name__)

_BLOCK_ROWS = 8192
Array = np.ndarray[Any, Any]


class Hdf5File(Backend):
    """The HDF5 kind of store."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.work = work_folder(path)
        self._opened: _OpenFile | None = None
        self._lease: Lease | None = None
        self._holds = 0
        check_version(self._file().attrs.get(VERSION_KEY), path)

    @classmethod
    def create(cls, path: Path) -> None:
        """Make an empty store; one that is there stays as it is."""
        work = work_folder(path)
        with writing(path):
            work.mkdir(parents=True, exist_ok=True)
            lease = Lease.take(work / "lock")
            if lease is None:  # whoever holds it makes, or has made, the file
                raise _busy(path)
            try:
                if not path.exists():
                    temporary = work / "building-new.h5"
                    with h5py.File(temporary, "w") as file:
                        file.attrs[VERSION_KEY] = FORMAT_VERSION
                        file.create_group("features")
                    _replace(temporary, path)
            finally:
                lease.release()

    def _file(self) -> h5py.File:
        """The file as it is now, open for reading."""
        return self._current().file

    def _current(self) -> _OpenFile:
        try:
            status = os.stat(self.path)
            stamp = (status.st_ino, status.st_mtime_ns)
            if self._opened is None or self._opened.stamp != stamp:
                # No HDF5 lock: a file under this name is never written to.
                self._opened = _OpenFile(h5py.File(self.path, "r", locking=False), stamp)
        except OSError as error:
            raise StoreError(
                "The HDF5 file cannot be read.",
                f"{self.path}: {error}",
                "If it is a feature store, it is damaged: put back a copy, or extract again.",
            ) from error
        return self._opened

    def specs(self) -> dict[str, FeatureSpec]:
        found = {}
        for fid, group in sorted(self._file()["features"].items()):
            try:
                values = json.loads(group.attrs[SPEC_KEY])
                found[fid] = FeatureSpec.from_mapping(values, f"{self.path}: /features/{fid}")
            except (ConfigError, KeyError, ValueError) as error:
                raise StoreError(
                    "The description of these features is damaged.",
                    f"{self.path}: /features/{fid}: {error}",
                ) from None
        return found

    def commit_ids(self, fid: str) -> list[str]:
        return list(self._file().get(f"features/{fid}/commits", ()))

    def read_commit(self, fid: str, commit_id: str) -> Commit:
        place = f"/features/{fid}/commits/{commit_id}"
        try:
            raw = self._file()[place][()].tobytes()
        except (OSError, KeyError) as error:
            raise StoreError("A commit cannot be read.", f"{self.path}: {error}") from error
        return decode(raw, f"{self.path}: {place}")

    def commits(self, fid: str) -> Iterator[Commit]:
        for commit_id in self.commit_ids(fid):
            try:
                yield self.read_commit(fid, commit_id)
            except StoreError as error:
                logger.warning("%s Its videos count as not present.", error)

    def remember_catalogue(self, fid: str) -> None:
        """The commits are one file already."""

    def open_part(self, fid: str, part: str) -> PartRows:
        return _ContiguousRows(self._current(), f"{self.path}: /features/{fid}/parts/{part}", part)

    def check_part(self, fid: str, commit: Commit) -> list[Flaw]:
        try:
            rows = self.open_part(fid, commit.id)
            if rows.shape[0] != commit.rows:
                raise StoreError(f"{rows.shape[0]} rows, but the commit says {commit.rows}.")
            rows.times(0, commit.rows)
        except StoreError as error:
            return [Flaw(0, commit.rows, f"{error.what} {error.where}".strip())]
        return []

    def spool_root(self, fid: str) -> Path:
        return self.work / "spool" / fid

    def spooled_fids(self) -> list[str]:
        return sorted(path.name for path in (self.work / "spool").glob("*"))

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        if self._holds == 0:
            self.work.mkdir(exist_ok=True)
            self._lease = Lease.take(self.work / "lock", f"process {os.getpid()}")
            if self._lease is None:
                raise _busy(self.path)
            for left_over in self.work.glob("building-*"):  # of a killed writer
                left_over.unlink()
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
            if self._holds == 0 and self._lease is not None:
                self._lease.release()
                self._lease = None

    def publish(
        self,
        spec: FeatureSpec,
        commit: Commit,
        videos: Sequence[SpooledVideo],
        folder: Path,
    ) -> None:
        def change(file: h5py.File) -> None:
            home = file.require_group(f"features/{spec.fid}")
            home.attrs[SPEC_KEY] = json.dumps(spec.to_mapping(), sort_keys=True)
            if videos:
                _write_part(home.require_group("parts").create_group(commit.id), commit, videos)
            line = np.frombuffer(encode(commit), np.uint8)
            home.require_group("commits").create_dataset(commit.id, data=line)

        self._change(change)

    def rows_worth_packing(self, fid: str, part_rows: int) -> int:
        # Packing copies the file; waiting until it doubles keeps the sum of the copies linear.
        return max(part_rows, self._current().rows)

    def unreferenced_parts(self, fid: str) -> list[str]:
        parts = set(self._file().get(f"features/{fid}/parts", ()))
        return sorted(parts - set(self.commit_ids(fid)))

    def remove(self, fid: str, parts: Sequence[str], commits: Sequence[str]) -> int:
        if not parts and not commits:
            return 0
        gone = {f"features/{fid}/parts/{part}" for part in parts}
        gone |= {f"features/{fid}/commits/{commit}" for commit in commits}
        before = self.path.stat().st_size
        temporary = self.work / f"building-{secrets.token_hex(4)}.h5"
        with h5py.File(temporary, "w") as target:  # HDF5 gives space back only to a new file
            _copy_but(self._file(), target, gone)
        _replace(temporary, self.path)
        return max(0, before - self.path.stat().st_size)

    def annotations(self) -> tuple[bytes, str] | None:
        kept = self._file().get("annotations")
        return None if kept is None else (kept[()].tobytes(), str(kept.attrs["sha256"]))

    def set_annotations(self, raw: bytes, sha256: str) -> None:
        def change(file: h5py.File) -> None:
            if "annotations" in file:
                del file["annotations"]
            file.create_dataset("annotations", data=np.frombuffer(raw, np.uint8))
            file["annotations"].attrs["sha256"] = sha256

        self._change(change)

    def bytes_on_disk(self) -> int:
        return self.path.stat().st_size

    def _change(self, change: Callable[[h5py.File], None]) -> None:
        """Apply a change to a copy of the file and put that in its place."""
        temporary = self.work / f"building-{secrets.token_hex(4)}.h5"
        try:
            shutil.copyfile(self.path, temporary)
            with h5py.File(temporary, "r+", locking=False) as file:
                change(file)
            _replace(temporary, self.path)
        except RuntimeError as error:  # so h5py reports some failed writes
            raise OSError(str(error)) from error
        finally:
            temporary.unlink(missing_ok=True)


class _OpenFile:
    """One state of the file: open, mapped into memory as a whole, and never changing."""

    def __init__(self, file: h5py.File, stamp: tuple[int, int]) -> None:
        self.file = file
        self.stamp = stamp
        # By its handle, not by its name, which may mean another file by now.
        self.bytes = mmap.mmap(file.id.get_vfd_handle(), 0, access=mmap.ACCESS_READ)
        self.rows = 0
        for group in file.get("features", {}).values():
            self.rows += sum(part["times"].shape[0] for part in group.get("parts", {}).values())


class _ContiguousRows:
    """Reads one part; chunked or compressed by another tool, it is read through h5py."""

    def __init__(self, opened: _OpenFile, place: str, part: str) -> None:
        self._place = place
        self._opened = opened  # keeps file and map open
        try:
            group = opened.file[place.partition(": ")[2]]
            self._times = group["times"]
            self._rows = self._mapped(group["features"])
            self.shape: tuple[int, int] = group["features"].shape
        except (OSError, KeyError, ValueError) as error:
            raise _damaged(place, error) from error

    def _mapped(self, dataset: h5py.Dataset) -> Any:
        offset = dataset.id.get_offset()
        if offset is None:
            return dataset
        count = int(np.prod(dataset.shape))
        rows = np.frombuffer(self._opened.bytes, dataset.dtype, count=count, offset=offset)
        return rows.reshape(dataset.shape)

    def read(self, start: int, stop: int, step: int) -> Array:
        """Rows `start`, `start + step`, ... below `stop`, as [n, C] in memory of their own."""
        try:
            return np.array(self._rows[start:stop:step])
        except (OSError, ValueError) as error:
            raise _damaged(self._place, error) from error

    def times(self, start: int, stop: int) -> Array:
        """Row times [n], seconds."""
        try:
            return np.array(self._times[start:stop], dtype=np.float64)
        except (OSError, ValueError) as error:
            raise _damaged(self._place, error) from error


def _write_part(group: h5py.Group, commit: Commit, videos: Sequence[SpooledVideo]) -> None:
    channels = videos[0].channels
    features = group.create_dataset("features", (commit.rows, channels), videos[0].dtype)
    times = group.create_dataset("times", (commit.rows,), "<f8")
    first = 0
    for video in videos:
        times[first : first + video.rows] = video.times()
        rows = video.features()
        for start in range(0, video.rows, _BLOCK_ROWS):
            block = rows[start : start + _BLOCK_ROWS]
            features[first + start : first + start + len(block)] = block
        first += video.rows


def _copy_but(source: h5py.File, target: h5py.File, gone: set[str]) -> None:
    """Copy everything except the objects whose path is in `gone`."""
    target.attrs.update(source.attrs)
    if "annotations" in source:
        source.copy("annotations", target)
    target.create_group("features")
    for fid, group in source["features"].items():
        target.create_group(f"features/{fid}").attrs.update(group.attrs)
        for kind in ("parts", "commits"):
            for name in group.get(kind, ()):
                path = f"features/{fid}/{kind}/{name}"
                if path not in gone:
                    source.copy(path, target.require_group(f"features/{fid}/{kind}"), name)


def _replace(temporary: Path, path: Path) -> None:
    """Sync a finished file and give it the store's name."""
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def _busy(path: Path) -> StoreError:
    return StoreError(
        "Another process is writing to this HDF5 store.",
        str(path),
        "Wait for it, or use a .zarr store, which any number of writers may share.",
    )


def _damaged(place: str, reason: object) -> StoreError:
    return StoreError(
        "Part of the feature store is damaged.",
        f"{place}: {reason}",
        "Run tadpipe store verify --drop-damaged, then tadpipe extract to make it again.",
    )
