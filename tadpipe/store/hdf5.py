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
import math
import mmap
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from tadpipe.errors import ConfigError, StoreError
from tadpipe.store.backend import (
    FORMAT_VERSION,
    SPEC_KEY,
    VERSION_KEY,
    Backend,
    PartRows,
    check_version,
)
from tadpipe.store.commits import Commit, decode, encode
from tadpipe.store.durable import Lease, sync_folder, writing
from tadpipe.store.local_work import beside
from tadpipe.store.metadata import FeatureSpec
from tadpipe.store.shards import Flaw
from tadpipe.store.spool import FinishedVideo

logger = logging.getLogger(__name__)

_BLOCK_ROWS = 8192
_SLACK_BYTES = 65_536  # of groups and headers that a change adds
Array = np.ndarray[Any, Any]


class Hdf5File(Backend):
    """The HDF5 kind of store."""

    path: Path

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.work = beside(path)
        self._map: _MappedFile | None = None
        self._lease: Lease | None = None
        self._holds = 0
        with self._reading() as file:
            check_version(file.attrs.get(VERSION_KEY), path)

    @classmethod
    def create(cls, path: Path) -> None:
        """Make an empty store; one that is there stays as it is."""
        work = beside(path)
        with writing(path):
            work.mkdir(parents=True, exist_ok=True)
            lease = Lease.take(work / "lock")
            if lease is None:  # whoever holds it makes, or has made, the file
                raise _busy(path)
            try:
                if not path.exists():
                    temporary = work / "building-new.h5"
                    _reserve(temporary, 0)
                    with h5py.File(temporary, "w") as file:
                        file.attrs[VERSION_KEY] = FORMAT_VERSION
                        file.create_group("features")
                    _replace(temporary, path)
            finally:
                lease.release()

    @contextmanager
    def _reading(self) -> Iterator[h5py.File]:
        """The file as it is now, open for a moment: HDF5 would refuse it to others meanwhile."""
        try:
            with h5py.File(self.path, "r") as file:
                yield file
        except StoreError:
            raise
        except OSError as error:
            raise StoreError(
                "The HDF5 file cannot be read.",
                f"{self.path}: {error}",
                "If it is a feature store, it is damaged: put back a copy, or extract again.",
            ) from error

    def _mapped(self) -> _MappedFile:
        """The bytes of the file as it is now."""
        # Opened on its own: a map of h5py's handle would keep HDF5's lock on the file.
        with self._reading() as file, open(self.path, "rb") as own:
            inode = os.fstat(own.fileno()).st_ino
            if self._map is None or self._map.inode != inode:
                raw = mmap.mmap(own.fileno(), 0, access=mmap.ACCESS_READ)
                self._map = _MappedFile(raw, inode, _total_rows(file))
        return self._map

    def specs(self) -> dict[str, FeatureSpec]:
        with self._reading() as file:
            texts = {fid: group.attrs.get(SPEC_KEY, "") for fid, group in file["features"].items()}
        found = {}
        for fid, text in sorted(texts.items()):
            try:
                values = json.loads(text)
                found[fid] = FeatureSpec.from_mapping(values, f"{self.path}: /features/{fid}")
            except (ConfigError, ValueError) as error:
                raise StoreError(
                    "The description of these features is damaged.",
                    f"{self.path}: /features/{fid}: {error}",
                ) from None
        return found

    def commit_ids(self, fid: str) -> list[str]:
        with self._reading() as file:
            return list(file.get(f"features/{fid}/commits", ()))

    def read_commit(self, fid: str, commit_id: str) -> Commit:
        with self._reading() as file:
            return self._decoded(file, fid, commit_id)

    def _decoded(self, file: h5py.File, fid: str, commit_id: str) -> Commit:
        place = f"/features/{fid}/commits/{commit_id}"
        try:
            raw = file[place][()].tobytes()
        except (OSError, KeyError) as error:
            raise StoreError("A commit cannot be read.", f"{self.path}: {error}") from error
        return decode(raw, f"{self.path}: {place}")

    def open_part(self, fid: str, part: str) -> PartRows:
        return _ContiguousRows(self.path, self._mapped(), f"/features/{fid}/parts/{part}")

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
        videos: Sequence[FinishedVideo],
        folder: Path,
    ) -> None:
        def change(file: h5py.File) -> None:
            home = file.require_group(f"features/{spec.fid}")
            home.attrs[SPEC_KEY] = json.dumps(spec.to_mapping(), sort_keys=True)
            if videos:
                _write_part(home.require_group("parts").create_group(commit.id), commit, videos)
            line = np.frombuffer(raw, np.uint8)
            home.require_group("commits").create_dataset(commit.id, data=line)

        raw = encode(commit)
        self._change(change, sum(v.features().nbytes + 8 * v.rows for v in videos) + len(raw))

    parts_are_files = False

    def fetch_part(self, fid: str, part: str, into: Path) -> None:
        raise AssertionError("parts of an HDF5 file are no files")

    def publish_files(self, spec: FeatureSpec, commit: Commit, building: Path | None) -> None:
        raise AssertionError("parts of an HDF5 file are no files")

    def ages_sec(self, fid: str, commits: Sequence[str], parts: Sequence[str]) -> dict[str, float]:
        return dict.fromkeys([*commits, *parts], math.inf)  # readers keep the file they opened

    def rows_worth_packing(self, fid: str, part_rows: int) -> int:
        # Packing copies the file; waiting until it doubles keeps the sum of the copies linear.
        if self._map is None or self._map.inode != self.path.stat().st_ino:
            self._mapped()
        return max(part_rows, self._map.rows if self._map else 0)

    def unreferenced_parts(self, fid: str) -> list[str]:
        with self._reading() as file:
            parts = set(file.get(f"features/{fid}/parts", ()))
            return sorted(parts - set(file.get(f"features/{fid}/commits", ())))

    def remove(self, fid: str, parts: Sequence[str], commits: Sequence[str]) -> int:
        if not parts and not commits:
            return 0
        gone = {f"features/{fid}/parts/{part}" for part in parts}
        gone |= {f"features/{fid}/commits/{commit}" for commit in commits}
        before = self.path.stat().st_size
        temporary = self.work / f"building-{secrets.token_hex(4)}.h5"
        try:
            _reserve(temporary, before)
            h5py.File(temporary, "w").close()
            _reserve(temporary, before)
            # HDF5 gives space back only to a new file.
            with self._reading() as source, h5py.File(temporary, "r+") as target:
                _copy_but(source, target, gone)
            _replace(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)
        return max(0, before - self.path.stat().st_size)

    def annotations(self) -> tuple[bytes, str] | None:
        with self._reading() as file:
            kept = file.get("annotations")
            return None if kept is None else (kept[()].tobytes(), str(kept.attrs["sha256"]))

    def set_annotations(self, raw: bytes, sha256: str) -> None:
        def change(file: h5py.File) -> None:
            if "annotations" in file:
                del file["annotations"]
            file.create_dataset("annotations", data=np.frombuffer(raw, np.uint8))
            file["annotations"].attrs["sha256"] = sha256

        self._change(change, len(raw))

    def bytes_on_disk(self) -> int:
        return self.path.stat().st_size

    def _change(self, change: Callable[[h5py.File], None], grows: int) -> None:
        """Apply a change, of so many bytes, to a copy of the file and put that in its place."""
        temporary = self.work / f"building-{secrets.token_hex(4)}.h5"
        try:
            shutil.copyfile(self.path, temporary)
            _reserve(temporary, self.path.stat().st_size + grows)
            with h5py.File(temporary, "r+") as file:
                change(file)
            _replace(temporary, self.path)
        except RuntimeError as error:  # so h5py reports some failed writes
            raise OSError(str(error)) from error
        finally:
            temporary.unlink(missing_ok=True)


class _MappedFile(NamedTuple):
    """One state of the file, mapped into memory as a whole; it never changes."""

    raw: mmap.mmap
    inode: int
    rows: int  # over all parts


def _total_rows(file: h5py.File) -> int:
    groups = file.get("features", {}).values()
    return sum(len(part.get("times", ())) for g in groups for part in g.get("parts", {}).values())


class _ContiguousRows:
    """Reads one part; chunked or compressed by another tool, it is read through h5py."""

    def __init__(self, path: Path, mapped: _MappedFile, place: str) -> None:
        self._path = path
        self._place = place
        try:
            with h5py.File(path, "r") as file:
                # Nobody replaced the file since it was mapped, or its offsets are not to be used.
                is_same = os.fstat(file.id.get_vfd_handle()).st_ino == mapped.inode
                group = file[place]
                self.shape: tuple[int, int] = group["features"].shape
                self._rows = _view(group["features"], mapped.raw) if is_same else None
                self._times = _view(group["times"], mapped.raw) if is_same else None
        except (OSError, KeyError, ValueError) as error:
            raise self._damaged(error) from error

    def read(self, start: int, stop: int, step: int) -> Array:
        """Rows `start`, `start + step`, ... below `stop`, as [n, C] in memory of their own."""
        if self._rows is None:
            return self._through_h5py("features", slice(start, stop, step))
        return np.array(self._rows[start:stop:step])

    def times(self, start: int, stop: int) -> Array:
        """Row times [n], seconds."""
        if self._times is None:
            return self._through_h5py("times", slice(start, stop))
        return np.array(self._times[start:stop], dtype=np.float64)

    def _through_h5py(self, name: str, rows: slice) -> Array:
        try:
            with h5py.File(self._path, "r") as file:
                return np.asarray(file[self._place][name][rows])
        except (OSError, KeyError, ValueError) as error:
            raise self._damaged(error) from error

    def _damaged(self, reason: object) -> StoreError:
        return StoreError(
            "Part of the feature store is damaged.",
            f"{self._path}: {self._place}: {reason}",
            "Run tadpipe store verify --drop-damaged, then tadpipe extract to make it again.",
        )


def _view(dataset: h5py.Dataset, raw: mmap.mmap) -> Array | None:
    """The values of a dataset inside the mapped file; None where they do not lie there plainly."""
    offset = dataset.id.get_offset()
    if offset is None:
        return None
    count = int(np.prod(dataset.shape))
    return np.frombuffer(raw, dataset.dtype, count=count, offset=offset).reshape(dataset.shape)


def _write_part(group: h5py.Group, commit: Commit, videos: Sequence[FinishedVideo]) -> None:
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


def _reserve(path: Path, size: int) -> None:
    """Take the space that a file will need, or raise: HDF5 does not survive a full disk.

    What is taken too much goes when HDF5 closes the file.
    """
    with open(path, "ab") as file:
        os.posix_fallocate(file.fileno(), 0, size + _SLACK_BYTES)


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
