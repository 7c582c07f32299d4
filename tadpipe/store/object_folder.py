"""A feature store on object storage: the layout of zarr_folder.py, as objects.

Any Zarr reader opens it by its address. Commits are conditional puts; parts are built on the
machine that wrote them and put when they are closed; spool, content index and the newest lines of
the ledger are in a folder of this machine (local_work.py), where the commits read before are kept,
too.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tadpipe.errors import StoreError
from tadpipe.location import Address
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
from tadpipe.store.durable import append_lines
from tadpipe.store.ledger import LedgerRow, Line
from tadpipe.store.local_work import work_folder
from tadpipe.store.metadata import FeatureSpec
from tadpipe.store.object_ledger import ObjectLedger
from tadpipe.store.object_part import PartObjects
from tadpipe.store.objects import Objects
from tadpipe.store.run_progress import RunProgress
from tadpipe.store.shards import Flaw
from tadpipe.store.spool import FinishedVideo, is_alive

logger = logging.getLogger(__name__)


class ObjectFolder(Backend):
    """The Zarr kind of store on object storage."""

    def __init__(self, address: Address) -> None:
        super().__init__()
        self.path = address
        self.work = work_folder(address)
        self.objects = Objects(address)
        self._groups: set[str] = set()  # known to be there
        self._ledger = ObjectLedger(self.objects, self.work / "ledger", self.work / "ledger-read")
        self._adopted = False
        try:
            root = shards.parse_metadata(self.objects.read("zarr.json"), f"{address}/zarr.json")
        except FileNotFoundError:
            root = {}
        check_version(root.get("attributes", {}).get(VERSION_KEY), address)

    @classmethod
    def create(cls, address: Address) -> None:
        """Make an empty store; one that is there stays as it is.

        Raises:
            StoreError: other things are there, or the storage cannot hold a store.
        """
        objects = Objects(address)
        there = {} if objects.exists("zarr.json") else objects.listing("")
        if there and "zarr.json" not in there:  # or another process made it this moment
            raise StoreError(
                "This folder is not empty and not a feature store.",
                str(address),
                "Name another address.",
            )
        objects.create("zarr.json", _group_document({VERSION_KEY: FORMAT_VERSION}))

    def specs(self) -> dict[str, FeatureSpec]:
        found = {}
        keys = {fid: f"features/{fid}/zarr.json" for fid in self.objects.folders("features")}
        raw = self.objects.read_many(list(keys.values()))
        for fid, key in keys.items():
            if key in raw:
                found[fid] = spec_of_group(raw[key], f"{self.path}/{key}")
        return found

    def commit_ids(self, fid: str) -> list[str]:
        folder = f"features/{fid}/commits/"
        keys = [key.removeprefix(folder) for key in self.objects.listing(folder.rstrip("/"))]
        return [key.removesuffix(".json") for key in keys if key.endswith(".json")]

    def read_commit(self, fid: str, commit_id: str) -> Commit:
        key = _commit_key(fid, commit_id)
        try:
            return decode(self.objects.read(key), f"{self.path}/{key}")
        except FileNotFoundError as error:
            raise StoreError("A commit cannot be read.", str(error)) from None

    def _remembered(self, fid: str) -> Iterator[Commit]:
        kept = self._kept_commits(fid)
        if kept.exists():
            yield from decode_lines(kept.read_bytes(), str(kept))
        key = _catalogue_key(fid)
        remote = self.objects.read_many([key]).get(key, b"")
        commits = list(decode_lines(remote, f"{self.path}/{key}"))
        self._keep(fid, commits)
        yield from commits

    def _read_commits(self, fid: str, commit_ids: Sequence[str]) -> Iterator[Commit]:
        found = []
        keys = {_commit_key(fid, commit_id): commit_id for commit_id in commit_ids}
        for key, raw in self.objects.read_many(list(keys)).items():
            try:
                found.append(decode(raw, f"{self.path}/{key}"))
            except StoreError as error:
                logger.warning("%s Its videos count as not present.", error)
        self._keep(fid, found)
        yield from found

    def _kept_commits(self, fid: str) -> Path:
        return self.work / f"commits-{fid}.jsonl"

    def _keep(self, fid: str, commits: Sequence[Commit]) -> None:
        """Commits never change: what was read once is not asked for again."""
        try:
            append_lines(self._kept_commits(fid), b"".join(map(encode, commits)))
        except OSError as error:  # a cache only
            logger.info("%s: %s", self.work, error)

    def _write_catalogue(self, fid: str, raw: bytes) -> None:
        self.objects.put(_catalogue_key(fid), raw)

    def open_part(self, fid: str, part: str) -> PartRows:
        return shards.ShardedRows(PartObjects(self.objects, _part_key(fid, part)))

    def check_part(self, fid: str, commit: Commit) -> list[Flaw]:
        return shards.check(PartObjects(self.objects, _part_key(fid, commit.id)), commit.rows)

    def spool_root(self, fid: str) -> Path:
        return self.work / "spool" / fid

    def spooled_fids(self) -> list[str]:
        return sorted(path.name for path in (self.work / "spool").glob("*"))

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Writers never meet; but the storage must be one on which they cannot."""
        self.objects.need_create("zarr.json")
        if not self._adopted:
            self._adopted = True
            self._ledger.adopt(self._is_alive)
        yield

    def _is_alive(self, writer_id: str) -> bool:
        return any(is_alive(self.spool_root(fid), writer_id) for fid in self.spooled_fids())

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
        home = f"features/{spec.fid}"
        self._make_group("features", {})
        self._make_group(home, group_attributes(spec))
        self._make_group(f"{home}/parts", {})
        if building is not None:
            part = _part_key(spec.fid, commit.id)
            for path in sorted(building.rglob("*")):
                if path.is_file():
                    self.objects.put(f"{part}/{path.relative_to(building).as_posix()}", path)
            self.objects.put(f"{part}/zarr.json", _group_document({}))
            shutil.rmtree(building)
        key, raw = _commit_key(spec.fid, commit.id), encode(commit)
        # Names of commits are never given twice: what is there is this commit, whose put was
        # answered too late and asked again.
        if not self.objects.create(key, raw) and self.objects.read(key) != raw:
            raise StoreError("Another commit has this name.", f"{self.path}/{key}")

    def fetch_part(self, fid: str, part: str, into: Path) -> None:
        key = _part_key(fid, part)
        for found in self.objects.listing(key):
            target = into / found.removeprefix(f"{key}/")
            target.parent.mkdir(parents=True, exist_ok=True)
            self.objects.fetch(found, target)

    def ages_sec(self, fid: str, commits: Sequence[str], parts: Sequence[str]) -> dict[str, float]:
        home = f"features/{fid}"
        when = self.objects.listing(f"{home}/commits") if commits else {}
        keys = {name: _commit_key(fid, name) for name in commits}
        for part in parts:
            when |= self.objects.listing(_part_key(fid, part))
            keys[part] = f"{_part_key(fid, part)}/zarr.json"  # put last
        now_sec = self.objects.now_sec()
        return {name: now_sec - when[key].modified_sec for name, key in keys.items() if key in when}

    def rows_worth_packing(self, fid: str, part_rows: int) -> int:
        return part_rows

    def unreferenced_parts(self, fid: str) -> list[str]:
        # Parts first: one committed between the two looks must not be taken for an orphan.
        parts = self.objects.folders(f"features/{fid}/parts")
        known = set(self.commit_ids(fid))
        return sorted(part for part in parts if part not in known)

    def remove(self, fid: str, parts: Sequence[str], commits: Sequence[str]) -> int:
        self.objects.remove([_commit_key(fid, commit_id) for commit_id in commits])
        freed = 0
        for part in parts:
            found = self.objects.listing(_part_key(fid, part))
            freed += sum(facts.bytes for facts in found.values())
            self.objects.remove(list(found))
        self._kept_commits(fid).unlink(missing_ok=True)
        return freed

    def annotations(self) -> tuple[bytes, str] | None:
        try:
            raw = self.objects.read("annotations.json")
        except FileNotFoundError:
            return None
        return raw, hashlib.sha256(raw).hexdigest()

    def set_annotations(self, raw: bytes, sha256: str) -> None:
        self.objects.put("annotations.json", raw)

    def bytes_on_disk(self) -> int:
        return sum(facts.bytes for facts in self.objects.listing("").values())

    def record(self, writer_id: str, fid: str, row: LedgerRow) -> None:
        self._ledger.record(writer_id, fid, row)

    def close_ledger(self, writer_id: str) -> None:
        self._ledger.close(writer_id)

    def ledger_lines(self) -> list[Line]:
        return self._ledger.lines()

    def tell(self, progress: RunProgress) -> None:
        self._ledger.tell(progress)

    def told(self) -> list[RunProgress]:
        return self._ledger.told()

    def _make_group(self, key: str, attributes: Mapping[str, Any]) -> None:
        if key not in self._groups:
            self.objects.create(f"{key}/zarr.json", _group_document(attributes))
            self._groups.add(key)


def _part_key(fid: str, part: str) -> str:
    return f"features/{fid}/parts/{part}"


def _commit_key(fid: str, commit_id: str) -> str:
    return f"features/{fid}/commits/{commit_id}.json"


def _catalogue_key(fid: str) -> str:
    return f"features/{fid}/catalogue.jsonl"


def _group_document(attributes: Mapping[str, Any]) -> bytes:
    document = {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}
    return json.dumps(document, indent=2).encode()
