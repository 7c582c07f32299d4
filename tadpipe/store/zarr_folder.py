"""A feature store as a plain Zarr v3 group: any number of writers, no locks.

zarr.json, annotations.json, ledger/<writer>.jsonl
features/<fid>/zarr.json               the spec in its attributes
    parts/<part>/{features,times}/     immutable arrays, see shards.py
    commits/<part>.json                written last; a part exists once its commit does
    catalogue.jsonl                    the commits end to end, derived, made again when missing
    spool/<writer>/                    finished videos on their way into a part
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from tadpipe.config import write_atomically
from tadpipe.errors import StoreError
from tadpipe.store import shards
from tadpipe.store.backend import (
    FORMAT_VERSION,
    VERSION_KEY,
    Backend,
    PartRows,
    check_version,
    group_attributes,
    spec_of_group,
)
from tadpipe.store.commits import Commit, decode, decode_lines, encode
from tadpipe.store.durable import sync_folder, writing
from tadpipe.store.metadata import FeatureSpec
from tadpipe.store.shards import Flaw
from tadpipe.store.spool import FinishedVideo

STALE_SEC = 3600.0  # half-written files of this age belong to nobody living
_HALF_WRITTEN = ".zarr.json-"  # what a killed attempt to make a store leaves begins with this


class ZarrFolder(Backend):
    """The Zarr kind of store."""

    path: Path

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = self.work = path
        root = path / "zarr.json"
        metadata = shards.parse_metadata(_read(root), str(root)) if root.exists() else {}
        check_version(metadata.get("attributes", {}).get(VERSION_KEY), path)

    @classmethod
    def create(cls, path: Path) -> None:
        """Make an empty store; one that is there stays as it is.

        Raises:
            StoreError: the folder holds other things.
        """
        if path.is_dir() and not (is_free(path) or (path / "zarr.json").exists()):
            raise StoreError(
                "This folder is not empty and not a feature store.",
                str(path),
                "Name another path.",
            )
        with writing(path):
            _write_group(path, {VERSION_KEY: FORMAT_VERSION})

    def specs(self) -> dict[str, FeatureSpec]:
        found = {}
        for path in sorted((self.path / "features").glob("*/zarr.json")):
            found[path.parent.name] = spec_of_group(_read(path), str(path))
        return found

    def commit_ids(self, fid: str) -> list[str]:
        try:
            with os.scandir(self._commits(fid)) as entries:
                names = [entry.name for entry in entries]
        except FileNotFoundError:
            return []
        return [name[:-5] for name in names if name.endswith(".json") and name[0] != "."]

    def read_commit(self, fid: str, commit_id: str) -> Commit:
        path = self._commits(fid) / f"{commit_id}.json"
        try:
            return decode(path.read_bytes(), str(path))
        except OSError as error:
            raise StoreError("A commit cannot be read.", f"{path}: {error.strerror}") from error

    def _remembered(self, fid: str) -> Iterator[Commit]:
        path = self._catalogue(fid)
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return
        yield from decode_lines(raw, str(path))

    def _write_catalogue(self, fid: str, raw: bytes) -> None:
        write_atomically(self._catalogue(fid), raw)

    def open_part(self, fid: str, part: str) -> PartRows:
        return shards.ShardedRows(shards.PartFolder(self._part(fid, part)))

    def check_part(self, fid: str, commit: Commit) -> list[Flaw]:
        return shards.check(shards.PartFolder(self._part(fid, commit.id)), commit.rows)

    def spool_root(self, fid: str) -> Path:
        return self.path / "features" / fid / "spool"

    def spooled_fids(self) -> list[str]:
        return sorted(path.parent.name for path in (self.path / "features").glob("*/spool"))

    def exclusive(self) -> AbstractContextManager[None]:
        return nullcontext()  # writers never meet: each has files of its own

    def publish(
        self,
        spec: FeatureSpec,
        commit: Commit,
        videos: Sequence[FinishedVideo],
        folder: Path,
    ) -> None:
        building = shards.build(folder, videos) if videos else None
        self.publish_files(spec, commit, building)

    def publish_files(self, spec: FeatureSpec, commit: Commit, building: Path | None) -> None:
        home = self.path / "features" / spec.fid
        _write_group(self.path / "features", {})
        _write_group(home, group_attributes(spec))
        _write_group(home / "parts", {})
        if building is not None:
            _write_group(building, {})
            os.rename(building, self._part(spec.fid, commit.id))
            sync_folder(home / "parts")
        write_atomically(self._commits(spec.fid) / f"{commit.id}.json", encode(commit))
        sync_folder(self._commits(spec.fid))

    def fetch_part(self, fid: str, part: str, into: Path) -> None:
        source = self._part(fid, part)
        for path in sorted(source.rglob("*")):
            if path.is_file():
                target = into / path.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                _link(path, target)

    def ages_sec(self, fid: str, commits: Sequence[str], parts: Sequence[str]) -> dict[str, float]:
        paths = {part: self._part(fid, part) / "zarr.json" for part in parts}
        paths |= {name: self._commits(fid) / f"{name}.json" for name in commits}
        # A new file tells the time of the file system, which need not be this machine's.
        handle, new = tempfile.mkstemp(dir=self.path, prefix=".clock-")
        now_sec = os.fstat(handle).st_mtime
        os.close(handle)
        os.unlink(new)
        ages = {}
        for name, path in paths.items():
            with contextlib.suppress(FileNotFoundError):
                ages[name] = now_sec - path.stat().st_mtime
        return ages

    def rows_worth_packing(self, fid: str, part_rows: int) -> int:
        return part_rows

    def unreferenced_parts(self, fid: str) -> list[str]:
        # Parts first: one committed between the two looks must not be taken for an orphan.
        parts = [path.parent.name for path in (self._part(fid, "")).glob("*/zarr.json")]
        known = set(self.commit_ids(fid))
        return sorted(part for part in parts if part not in known)

    def remove(self, fid: str, parts: Sequence[str], commits: Sequence[str]) -> int:
        freed = 0
        for commit_id in commits:
            (self._commits(fid) / f"{commit_id}.json").unlink(missing_ok=True)
        for part in parts:
            folder = self._part(fid, part)
            freed += folder_bytes(folder)
            if folder.exists():
                shutil.rmtree(folder)
        for path in (self.path / "features" / fid).rglob(".*"):
            if path.is_file() and time.time() - path.stat().st_mtime > STALE_SEC:
                freed += path.stat().st_size
                path.unlink(missing_ok=True)
        return freed

    def annotations(self) -> tuple[bytes, str] | None:
        path = self.path / "annotations.json"
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return None
        return raw, hashlib.sha256(raw).hexdigest()

    def set_annotations(self, raw: bytes, sha256: str) -> None:
        write_atomically(self.path / "annotations.json", raw)

    def bytes_on_disk(self) -> int:
        return folder_bytes(self.path)

    def _part(self, fid: str, part: str) -> Path:
        return self.path / "features" / fid / "parts" / part

    def _commits(self, fid: str) -> Path:
        return self.path / "features" / fid / "commits"

    def _catalogue(self, fid: str) -> Path:
        return self.path / "features" / fid / "catalogue.jsonl"


def is_free(folder: Path) -> bool:
    """Whether a store can be made in a folder that is there: it holds nothing of anybody's."""
    return all(entry.name.startswith(_HALF_WRITTEN) for entry in folder.iterdir())


def _link(source: Path, target: Path) -> None:
    """A second name for a file that never changes; a copy where there cannot be one."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            raise
        shutil.copyfile(source, target)
        with open(target, "rb") as file:
            os.fsync(file.fileno())


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            total += os.lstat(os.path.join(parent, name)).st_size
    return total


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise shards.damaged(str(path), error) from None


def _write_group(folder: Path, attributes: Mapping[str, Any]) -> None:
    """Make a folder a Zarr group; one that is stays as it is."""
    if (folder / "zarr.json").exists():
        return
    document = {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}
    write_atomically(folder / "zarr.json", json.dumps(document, indent=2))
